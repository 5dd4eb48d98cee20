"""SLCA and SLCA++: what the card says must hold."""

from typing import Any

import numpy as np
import pytest
import torch
from resume_helpers import go_on, learn_keeping
from torch.nn import functional
from word_tasks import ENCODERS, few_inputs, tiny_backbone, tiny_folder, word_tasks

from contune.adapter.lora.norm_bias import LoraNormBias, top_right_vectors
from contune.adapter.weights.subset import full
from contune.checks.common import check_method
from contune.checks.run import SETTINGS, accuracy, copied, digit_tasks, same_state, tiny_model
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.errors import CombinationError
from contune.head.linear import Linear
from contune.head.scaled_linear import scaled_scores
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.rule.align.alignment import Alignment, drift_factors, normalised_logits, restored, samples_per_class
from contune.rule.align.reverse_cross_entropy import reverse_cross_entropy
from contune.rule.align.statistics import Gaussians, Sampler
from contune.stream.task import Task

RATE = {**SETTINGS, "lr": 0.05}


def slca_learner(name: str = "slca", train: dict[str, Any] = RATE, **options: Any) -> Learner:
    return Learner(tiny_model(), build_method(name, options), train=train)


def parts_of(learner: Learner, *names: str) -> State:
    state = copied(learner.state())
    return State({n: t for n, t in state.tensors.items() if n.startswith(names)})


def test_without_alignment_it_is_sequential_training_on_own_classes() -> None:
    rule = slca_learner(alignment_epochs=0)
    train = {**rule.method.train, **RATE}
    head = Linear(loss_over="own-task", start_spread=0.02)
    plain = Learner(tiny_model(), Method(full(lr_scale=0.01), head), train=train)
    for task in digit_tasks():
        rule.learn(task)
        plain.learn(task)
    assert same_state(parts_of(rule, "adapter/", "head/"), parts_of(plain, "adapter/", "head/")) is None


def test_alignment_is_undone_to_the_bit_and_leaves_the_backbone() -> None:
    learner = slca_learner()
    first, second, third = digit_tasks()
    learner.learn(first)
    context = learner.begin(second)
    learner.fit(context, lambda report: None)
    before = parts_of(learner, "adapter/", "head/")
    learner.end(context)
    after = parts_of(learner, "adapter/", "head/")
    adapter = [name for name in before.tensors if name.startswith("adapter/")]
    assert adapter
    assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in adapter)
    moved = (after.tensors["head/weight"] - before.tensors["head/weight"]).abs()
    assert bool((moved.amax(dim=1) > 0).all()), "every row is aligned"
    learner.begin(third)
    for name in ("head/weight", "head/bias"):
        assert torch.equal(learner.state().tensors[name][:4], before.tensors[name])
        assert len(learner.state().tensors[name]) == 6


def test_the_first_task_is_not_aligned() -> None:
    learner = slca_learner()
    context = learner.begin(digit_tasks()[0])
    learner.fit(context, lambda report: None)
    before = parts_of(learner, "head/")
    learner.end(context)
    assert same_state(before, parts_of(learner, "head/")) is None


def test_old_rows_rest_while_weight_decay_runs() -> None:
    learner = slca_learner(train={**RATE, "weight_decay": 0.1})
    learner.learn(digit_tasks()[0])
    old = learner.state().tensors["head/weight"].clone()
    context = learner.begin(digit_tasks()[1])
    learner.fit(context, lambda report: None)
    assert torch.equal(learner.state().tensors["head/weight"][:2], old)


def test_a_class_that_comes_back_is_trained_again_and_has_two_gaussians() -> None:
    first, second, _ = digit_tasks()
    learner = slca_learner()
    for task in (first, second):
        learner.learn(task)
    context = learner.begin(first)
    before = learner.state().tensors["head/weight"].clone()
    learner.fit(context, lambda report: None)
    moved = (learner.state().tensors["head/weight"] - before).abs().amax(dim=1) > 0
    assert moved.tolist() == [True, True, False, False]
    learner.end(context)
    gaussians = Gaussians.from_state(learner.method.rules[0].state().inner("gaussians"))
    assert gaussians.labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert gaussians.tasks.tolist() == [0, 0, 1, 1, 2, 2]
    assert samples_per_class(gaussians.labels, 5) == [3, 3, 5, 5, 2, 2]


def test_alignment_brings_back_what_own_task_training_cannot_compare() -> None:
    """Two tasks with heads trained apart: scores compare badly across them until the head has seen samples of both."""
    scores = {}
    for epochs in (0, 20):
        learner = slca_learner(train={**RATE, "epochs": 8}, alignment_epochs=epochs, alignment_lr=0.1)
        for task in digit_tasks():
            learner.learn(task)
        scores[epochs] = accuracy(learner, digit_tasks())
    assert scores[20] > scores[0] + 0.1


def test_normalised_logits_ignore_scale_and_are_those_of_a_plain_loop() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    tasks = torch.tensor([[True, True, False, False, False], [False, False, True, True, True]])
    expected = torch.stack([row / ((row[:2].norm() + row[2:].norm()) / 2) / 0.1 for row in logits])
    assert torch.allclose(normalised_logits(logits, tasks, 0.1), expected, atol=1e-5)
    for factor in (1e-3, 7.0, 1e4):
        assert torch.allclose(normalised_logits(factor * logits, tasks, 0.1), expected, atol=1e-4)


def test_rows_of_zeros_give_a_finite_gradient() -> None:
    weight = torch.zeros(2, 3, requires_grad=True)
    scores = normalised_logits(torch.ones(4, 3) @ weight.T, torch.tensor([[True, True]]), 0.1)
    functional.cross_entropy(scores, torch.tensor([0, 1, 0, 1])).backward()
    assert weight.grad is not None
    assert bool(torch.isfinite(weight.grad).all())


def test_drift_factors_are_those_of_the_released_code() -> None:
    generator = torch.Generator().manual_seed(0)
    means, scales = drift_factors(torch.tensor([0, 1, 3]), 3, 0.9, 0.0, generator)
    assert means.tolist() == pytest.approx([0.9 + 0.1 * 1 / 4, 0.9 + 0.1 * 2 / 4, 1.0])
    assert scales.tolist() == [1.0, 1.0, 1.0]
    means, scales = drift_factors(torch.full((20_000,), 1), 3, 1.0, 0.02, generator)
    assert means.unique().tolist() == [1.0]
    r = (1 / scales - 1) / 2
    assert float(r.min()) == pytest.approx(0.01, abs=1e-4)
    assert float(r.max()) == pytest.approx(0.03, abs=1e-4)


def test_samples_are_those_of_the_shrunk_gaussian() -> None:
    learner = slca_learner()
    for task in digit_tasks()[:2]:
        learner.learn(task)
    rule = learner.method.rules[0]
    assert isinstance(rule, Alignment)
    gaussians = Gaussians.from_state(rule.state().inner("gaussians"))
    rule.samples = 50_000
    features, labels, _ = rule._samples(Sampler(gaussians), 1, torch.Generator().manual_seed(0))
    old, new = (features[labels == label].mean(dim=0) for label in (0, 2))
    assert torch.allclose(old, 0.95 * gaussians.means[0], atol=0.05)
    assert torch.allclose(new, gaussians.means[2], atol=0.05)


def test_restoring_keeps_what_has_grown() -> None:
    grown = torch.tensor([[9.0, 9.0, 9.0], [8.0, 8.0, 8.0]])
    assert restored(grown, torch.tensor([[1.0, 2.0]])).tolist() == [[1.0, 2.0, 9.0], [8.0, 8.0, 8.0]]
    assert restored(torch.tensor(5.0), torch.tensor(2.0)).item() == 2.0


@pytest.mark.parametrize("name", ["slca", "slca++"])
def test_resumes_inside_the_third_task(name: str) -> None:
    whole = slca_learner(name)
    for task in digit_tasks()[:2]:
        whole.learn(task)
    halfway = learn_keeping(whole, digit_tasks()[2], step=4)
    again = slca_learner(name)
    go_on(again, halfway)
    assert same_state(whole.state(), again.state()) is None


@pytest.mark.parametrize("name", ["slca", "slca++"])
def test_texts_in_tasks_of_unequal_size(name: str) -> None:
    tasks = word_tasks((1, 3, 2))
    train = {"epochs": 6, "batch_size": 8, "lr": 0.05}
    learner = Learner(tiny_folder("bert"), build_method(name, {}), train=train)
    for task in tasks:
        learner.learn(task)
    right = np.concatenate([learner.answers(d) == d.labels for d in map(learner.test_dataset, tasks)])
    assert right.mean() > 0.5


@pytest.mark.parametrize(("adapter", "form"), [("lora", "diagonal"), ("none", "low-rank"), ("prompt-pool", "shared")])
def test_alignment_plugs_into_other_methods(adapter: str, form: str) -> None:
    def make() -> Method:
        rules = [{"alignment": {"form": form, "rank": 2, "samples": 32}}]
        return compose({"adapter": adapter, "head": {"linear": {"loss_over": "own-task"}}, "rules": rules})

    assert [problem for problem in check_method(make) if problem[1]] == []


def test_a_head_with_nothing_trained_is_refused() -> None:
    learner = slca_learner()
    context = learner.begin(digit_tasks()[0])

    class Bare(Linear):  # type: ignore[misc]
        def trained(self) -> dict[str, Any]:
            return {}

    from dataclasses import replace

    with pytest.raises(CombinationError, match="nothing that is trained"):
        Alignment().begin_task(context.with_model(replace(context.model, head=Bare())))


def test_reverse_cross_entropy_is_the_sum_over_clamped_labels() -> None:
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1])
    one_hot = functional.one_hot(labels, 4).float().clamp(min=1e-4)
    expected = -(logits.softmax(dim=1) * one_hot.log()).sum(dim=1)
    assert torch.allclose(reverse_cross_entropy(logits, labels), expected, atol=1e-5)


def test_scaled_scores_scale_the_features_of_each_row() -> None:
    generator = torch.Generator().manual_seed(0)
    features, weight, bias = (torch.randn(*s, generator=generator) for s in ((3, 4), (2, 4), (2,)))
    found = scaled_scores(features, weight, bias, torch.tensor([3, 0]), 0.02)
    assert torch.allclose(found[:, 0], 1.06 * features @ weight[0] + bias[0], atol=1e-6)
    assert torch.allclose(found[:, 1], features @ weight[1] + bias[1], atol=1e-6)


@pytest.mark.parametrize("name", ENCODERS)
def test_slca_plus_plus_starts_at_the_base_and_its_update_merges(name: str) -> None:
    from peft.tuners.lora import LoraLayer

    backbone, untouched = tiny_backbone(name), tiny_backbone(name)
    inputs = few_inputs(backbone)
    LoraNormBias(rank=4, scale=0.8).attach(backbone, 0)
    with torch.no_grad():
        assert torch.equal(backbone.features(inputs), untouched.features(inputs))
        layers = [m for m in backbone.model.modules() if isinstance(m, LoraLayer)]
        generator = torch.Generator().manual_seed(0)
        for layer in layers:
            b = layer.lora_B["default"].weight
            b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
        beside = backbone.features(inputs)
        assert not torch.allclose(beside, untouched.features(inputs), atol=1e-3)
        for layer in layers:
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            layer.get_base_layer().weight.add_(0.8 * b @ a)
            b.zero_()
        assert torch.allclose(backbone.features(inputs), beside, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_the_update_starts_at_the_top_right_singular_vectors(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    _, values, rows = torch.linalg.svd(weight)
    found = top_right_vectors(weight, 3)
    assert torch.allclose((found @ rows[:3].T).abs(), torch.eye(3), atol=1e-4)
    assert torch.allclose((weight @ found.T).norm(dim=0), values[:3], atol=1e-4)


def test_slca_plus_plus_trains_only_low_rank_norms_biases_and_class_token() -> None:
    learner = slca_learner("slca++")
    base = {n: p.detach().clone() for n, p in learner.backbone.base_parameters().items()}
    for task in digit_tasks()[:2]:
        learner.learn(task)
    after = learner.backbone.base_parameters()
    moved = {n for n, v in base.items() if not torch.equal(v, after[n])}
    assert moved
    assert all(n.endswith(("bias", "cls_token")) or "layernorm" in n for n in moved)
    assert any(n.endswith("cls_token") for n in moved)


def test_old_heads_answer_with_larger_features() -> None:
    learner = slca_learner("slca++", head_scale=0.5)
    tasks: list[Task] = list(digit_tasks())
    for task in tasks:
        learner.learn(task)
    head = learner.method.head
    features = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    weight, bias = head.trained()["weight"], head.trained()["bias"]
    factors = torch.tensor([2.0, 2.0, 1.5, 1.5, 1.0, 1.0])
    assert torch.allclose(head.logits(features), features @ weight.T * factors + bias, atol=1e-5)
    assert torch.allclose(head.training_logits(features), features @ weight.T + bias, atol=1e-5)
