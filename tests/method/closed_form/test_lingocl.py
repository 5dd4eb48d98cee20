"""LingoCL: the targets are the names, frozen to the bit, and nothing of an old class ever changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from word_tasks import tiny_folder, word_tasks

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.checks.run import SETTINGS, copied, digit_tasks, same_state, tiny_model
from contune.contract.data import Dataset
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.errors import ConfigError
from contune.head.text_targets import TextTargets, cosine_scores, embedded, prompts_of
from contune.method.catalog import build_method, compose


def image_learner(**options: Any) -> Learner:
    method = build_method("lingocl", {"encoder": str(tiny_folder("bert")), **options})
    return Learner(tiny_model(), method, train=SETTINGS)


def text_learner(name: str = "bert", **options: Any) -> Learner:
    train = {"epochs": 6, "batch_size": 8, "lr": 5e-3}
    return Learner(tiny_folder(name), build_method("lingocl", options), train=train)


def targets(learner: Learner) -> torch.Tensor:
    return learner.state().tensors["head/targets"]


def test_targets_are_the_unit_embeddings_of_the_names_and_never_change() -> None:
    learner = image_learner()
    encoder = Backbone.load(ModelConfig(path=str(tiny_folder("bert"))))
    before = torch.zeros(0, 32)
    for task in digit_tasks():
        context = learner.begin(task)
        started = targets(learner).clone()
        learner.fit(context, lambda report: None)
        learner.end(context)
        assert torch.equal(targets(learner), started)
        assert torch.equal(targets(learner)[: len(before)], before)
        before = started
    expected = embedded(encoder, [f"a photo of a {name}" for name in learner.class_names])
    assert torch.equal(targets(learner), expected)
    assert torch.allclose(expected.norm(dim=1), torch.ones(6))


def test_where_widths_agree_the_head_has_no_parameter_and_no_row_a_gradient() -> None:
    learner = image_learner()
    context = learner.begin(digit_tasks()[0])
    assert dict(learner.method.head.trained()) == {}
    assert not any(name.startswith("head.") for name in context.model.trained())
    outputs = context.model.forward(context.passes.batch([(context.task.data, np.arange(4))]))
    outputs.logits.sum().backward()
    assert targets(learner).grad is None
    assert not targets(learner).requires_grad


def test_where_widths_differ_one_map_is_trained_for_all_classes(tmp_path: Path) -> None:
    from tiny_models import save_tiny

    wide = save_tiny("bert", tmp_path / "wide", hidden_size=48)
    learner = image_learner(encoder=str(wide))
    learner.learn(digit_tasks()[0])
    first = learner.state().tensors["head/projection"].clone()
    assert first.shape == (48, 32)
    learner.begin(digit_tasks()[1])
    assert torch.equal(learner.state().tensors["head/projection"], first), "new classes do not touch the map"
    assert targets(learner).shape == (4, 48)


def test_new_classes_leave_the_scores_of_old_ones() -> None:
    learner = image_learner()
    learner.learn(digit_tasks()[0])
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    before = learner.method.head.logits(features)
    learner.begin(digit_tasks()[1])
    after = learner.method.head.logits(features)
    assert after.shape == (5, 4)
    assert torch.allclose(after[:, :2], before, rtol=0, atol=1e-5)


def test_with_orthonormal_targets_it_is_the_fixed_orthogonal_classifier() -> None:
    learner = image_learner()
    context = learner.begin(digit_tasks()[0])
    head = TextTargets(scale=7.0)
    head.load_state(State({"targets": torch.eye(32)[:6]}), context)
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    expected = 7.0 * features[:, :6] / features.norm(dim=1, keepdim=True)
    assert torch.allclose(head.logits(features), expected, atol=1e-5)
    assert dict(head.trained()) == {}


def test_texts_are_named_by_their_own_model_untouched_by_training() -> None:
    tasks = word_tasks((1, 3, 2))
    learner = text_learner()
    for task in tasks:
        learner.learn(task)
    encoder = Backbone.load(ModelConfig(path=str(tiny_folder("bert"))))
    assert torch.equal(targets(learner), embedded(encoder, list(learner.class_names)))
    assert dict(learner.method.head.trained()) == {}


def test_texts_are_learned_towards_their_names() -> None:
    tasks = word_tasks((3, 3))
    learner = text_learner("minilm")
    learner.learn(tasks[0])
    dataset = learner.test_dataset(tasks[0])
    assert (learner.answers(dataset) == dataset.labels).mean() > 0.5


def test_an_embedding_does_not_depend_on_its_company() -> None:
    encoder = Backbone.load(ModelConfig(path=str(tiny_folder("bert"))))
    together = embedded(encoder, ["a", "a much longer name of a class", "b"])
    alone = torch.cat([embedded(encoder, [text]) for text in ("a", "a much longer name of a class", "b")])
    assert torch.equal(together, alone)


def test_a_class_gets_the_same_target_in_any_task_order() -> None:
    rows = []
    for tasks in (digit_tasks(), digit_tasks()[::-1]):
        learner = image_learner()
        for task in tasks:
            learner.begin(task)
            learner.learned += 1
        rows.append({name: targets(learner)[column] for column, name in enumerate(learner.class_names)})
    assert all(torch.equal(rows[0][name], rows[1][name]) for name in rows[0])


def test_saved_targets_come_back_without_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = image_learner()
    for task in digit_tasks()[:2]:
        learner.learn(task)
    again = image_learner()

    def gone(*_: Any) -> None:
        raise AssertionError("the encoder was loaded to answer")

    monkeypatch.setattr(TextTargets, "_embedded", gone)
    again.load_state(copied(learner.state()))
    assert same_state(learner.state(), again.state()) is None
    images = list(digit_tasks()[0].test.inputs)
    assert again.predict(images) == learner.predict(images)


def test_prompts() -> None:
    assert prompts_of(["polar_bear", "sea"], "a {} in the wild") == ["a polar bear in the wild", "a sea in the wild"]
    with pytest.raises(ConfigError, match="template is 'photo'"):
        build_method("lingocl", {"template": "photo"})


def test_an_image_model_is_no_encoder() -> None:
    learner = Learner(tiny_model(), build_method("lingocl", {"encoder": tiny_model()}), train=SETTINGS)
    with pytest.raises(ConfigError, match="give a text model"):
        learner.learn(digit_tasks()[0])


def test_scores_are_cosines_whatever_the_length() -> None:
    features = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    assert torch.allclose(cosine_scores(features, rows, 2.0), cosine_scores(9 * features, rows, 2.0), atol=1e-6)
    assert float(cosine_scores(rows, rows, 2.0).diagonal().min()) == pytest.approx(2.0, abs=1e-5)


def test_with_several_modules_side_by_side_the_surest_answers() -> None:
    head = {"text-targets": {"encoder": str(tiny_folder("bert"))}}
    learner = Learner(tiny_model(), compose({"adapter": "bottleneck-per-task", "head": head}), train=SETTINGS)
    for task in digit_tasks()[:2]:
        learner.learn(task)
    dataset: Dataset = learner.test_dataset(digit_tasks()[0])
    assert set(learner.answers(dataset).tolist()) <= {0, 1, 2, 3}
