"""SD-LoRA: finished directions have size 1 and are frozen, magnitudes go on learning."""

from typing import Any

import pytest
import torch
from resume_helpers import difference_after_a_stop
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.adapter.lora import sd_lora as lora_decoupled
from contune.adapter.lora.per_task import LoraPerTask
from contune.adapter.lora.sd_lora import SdLora, direction_sizes, inverse
from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.checks.run import SETTINGS, copied, digit_tasks, same_state, tiny_model
from contune.contract.parts import Rule
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.head.linear import Linear
from contune.method.catalog import build_method
from contune.method.method import Method
from contune.stream.task import Task

RATE = {**SETTINGS, "lr": 0.05}
MAGNITUDES = "adapter/own/alpha"


def model_of(case: str) -> str:
    return tiny_model() if case == "digits" else str(tiny_folder(case))


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def sd_lora_learner(case: str = "digits", **options: Any) -> Learner:
    return Learner(model_of(case), build_method("sd-lora", {"rank": 4, **options}), train=RATE)


def adapter_of(learner: Learner) -> SdLora:
    adapter = learner.method.adapter
    assert isinstance(adapter, SdLora)
    return adapter


def features_of(learner: Learner, task: Task) -> Tensor:
    data = learner.test_dataset(task)
    return learner.reading(data).passes.features(data)


def pieces(state: State, place: str, rank: int = 4) -> list[tuple[Tensor, Tensor]]:
    """(A_k, B_k) of one module for every task, the current one last, out of a state."""
    names = {n: t for n, t in state.tensors.items() if place in n}
    a, b = (next(t for n, t in names.items() if "/past/" in n and f"lora_{x}" in n) for x in "AB")
    pairs = list(zip(a.split(rank), b.split(rank, dim=1), strict=True))
    return [*pairs, tuple(next(t for n, t in names.items() if "/default/" in n and f"lora_{x}" in n) for x in "AB")]


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_the_weight_change_is_the_formula_of_the_paper(case: str) -> None:
    learner = sd_lora_learner(case)
    for task in tasks_of(case):
        learner.learn(task)
    state, alpha = learner.state(), learner.state().tensors[MAGNITUDES]
    assert alpha.shape == (3,)
    changes = adapter_of(learner).weight_changes()
    assert len(changes) == 6
    for place, change in changes.items():
        *old, (a, b) = pieces(state, place)
        expected = alpha[2] * b @ a
        for k, (a_k, b_k) in enumerate(old):
            expected = expected + alpha[k] * b_k @ a_k / (b_k.norm() * a_k.norm())
        torch.testing.assert_close(change, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", ["digits", "bert", "clip-vision"])
def test_merged_into_the_weights_the_features_are_the_same(case: str) -> None:
    learner = sd_lora_learner(case)
    tasks = tasks_of("bert" if case == "bert" else "digits")
    for task in tasks:
        learner.learn(task)
    unmerged, data = features_of(learner, tasks[0]), learner.test_dataset(tasks[0])
    plain = Backbone.load(ModelConfig(path=model_of(case)))
    before = plain.features(plain.collate([(data.prepared, range(len(data)))]))
    for name, change in adapter_of(learner).weight_changes().items():
        plain.model.get_submodule(name.removeprefix("base_model.model.")).weight.data += change
    with torch.no_grad():
        merged = plain.features(plain.collate([(data.prepared, range(len(data)))]))
    torch.testing.assert_close(merged, unmerged, atol=1e-4, rtol=1e-4)
    assert float((merged - before).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_the_size_of_a_finished_lora_does_not_matter(side: str) -> None:
    learner = sd_lora_learner()
    for task in digit_tasks():
        learner.learn(task)
    expected = features_of(learner, digit_tasks()[0])
    state = copied(learner.state())
    for name, tensor in state.tensors.items():
        if "/past/" in name and side in name:
            rows = tensor if side == "lora_A" else tensor.T
            rows[:4] *= 7.0
    again = sd_lora_learner()
    again.load_state(state)
    torch.testing.assert_close(features_of(again, digit_tasks()[0]), expected, atol=1e-4, rtol=1e-4)


def test_without_the_sizes_it_would_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_decoupled, "inverse", lambda sizes: torch.ones_like(sizes).float())
    with pytest.raises(AssertionError):
        test_the_size_of_a_finished_lora_does_not_matter("lora_A")


def test_a_new_branch_adds_nothing_and_old_ones_get_size_one() -> None:
    learner = sd_lora_learner()
    first, second = digit_tasks()[:2]
    learner.learn(first)
    raw = adapter_of(learner).weight_changes()
    assert learner.state().tensors[MAGNITUDES].shape == (1,)
    pairs = {name: (a.clone(), b.clone()) for name, (a, b) in adapter_of(learner)._lora.factors().items()}
    learner.begin(second)
    assert learner.state().tensors[MAGNITUDES].tolist() == pytest.approx([0.8, 0.8])
    for name, change in adapter_of(learner).weight_changes().items():
        a, b = pairs[name]
        direction = 0.8 * (b @ a) / (b.norm() * a.norm())
        torch.testing.assert_close(change, direction.detach(), atol=1e-6, rtol=1e-5)
        assert not torch.allclose(change, raw[name], atol=1e-4), "answers jump at the boundary"


def test_directions_are_frozen_and_all_magnitudes_learn() -> None:
    learner = sd_lora_learner()
    first, second, third = digit_tasks()
    learner.learn(first)
    learner.learn(second)
    context = learner.begin(third)
    before = copied(learner.state()).tensors
    learner.fit(context, lambda report: None)
    after = learner.state().tensors
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {n for n in before if "/past/" not in n}
    assert (before[MAGNITUDES] != after[MAGNITUDES]).all()
    assert torch.equal(before["head/weight"][:4], after["head/weight"][:4])


@pytest.mark.parametrize("magnitudes", ["restart", "carry"])
def test_magnitudes_restart_or_are_carried_on(magnitudes: str) -> None:
    learner = sd_lora_learner(magnitudes=magnitudes)
    first, second, third = digit_tasks()
    learner.learn(first)
    learner.learn(second)
    learned = learner.state().tensors[MAGNITUDES].tolist()
    learner.begin(third)
    now = learner.state().tensors[MAGNITUDES].tolist()
    assert now == pytest.approx([*learned, 0.8] if magnitudes == "carry" else [0.8] * 3)
    assert learned != pytest.approx([0.8] * 2)


class Fixed(Rule):
    """Keeps the magnitudes where they are."""

    name = "fixed"

    def gradients(self, context, gradients):
        return {name: value for name, value in gradients.items() if "magnitudes" not in name}


def test_one_task_with_magnitude_one_is_plain_lora_to_the_bit() -> None:
    head, train = Linear, RATE
    decoupled = Learner(tiny_model(), Method(SdLora(rank=4, magnitude=1.0), head(), (Fixed(),)), train=train)
    plain = Learner(tiny_model(), Method(LoraPerTask(rank=4, alpha=4.0), head()), train=train)
    for learner in (decoupled, plain):
        learner.learn(digit_tasks()[0])
    states = [decoupled.state().inner("adapter").inner("lora"), plain.state().inner("adapter")]
    assert same_state(*states) is None
    assert same_state(decoupled.state().inner("head"), plain.state().inner("head")) is None


def test_sizes_are_products_of_norms_and_none_has_no_direction() -> None:
    a, b = torch.randn(6, 5), torch.randn(4, 6)
    sizes = direction_sizes(a, b, 3)
    expected = [float(a[k : k + 2].norm() * b[:, k : k + 2].norm()) for k in (0, 2, 4)]
    assert sizes.tolist() == pytest.approx(expected, rel=1e-5)
    b[:, 2:4] = 0
    assert inverse(direction_sizes(a, b, 3)).tolist()[1] == 0
    b[:, 2:4] = 1e-38
    assert torch.isfinite(inverse(direction_sizes(a, b, 3))).all()


def test_a_task_that_taught_nothing_adds_nothing() -> None:
    """One class and a loss over own classes: no gradient, so B stays zero and has no direction."""
    learner = sd_lora_learner("bert")
    for task in word_tasks((1, 2, 1, 2)):
        learner.learn(task)
    assert all(torch.isfinite(change).all() for change in adapter_of(learner).weight_changes().values())
    assert torch.isfinite(features_of(learner, word_tasks()[0])).all()


def test_texts_resume_exactly() -> None:
    learner, again = sd_lora_learner("bert"), sd_lora_learner("bert")
    assert difference_after_a_stop(learner, again, tasks_of("bert")) is None
    assert learner.base_unchanged()
