"""OSF: steps leave the strongest singular vectors alone, whatever the optimizer does; ranks, similarities, resume."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from resume_helpers import difference_after_a_stop
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.adapter.weights.linear_layers import linear_layers
from contune.checks.run import SETTINGS, digit_tasks, tiny_model
from contune.contract.context import Context
from contune.contract.parts import Rule, Tensors
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head.linear import Linear
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.rule.project.gradient_projection import linear_modules
from contune.rule.project.singular_subspace import (
    Sides,
    SingularSubspace,
    between,
    input_similarity,
    retained_rank,
    retained_ratios,
    similarities,
)
from contune.stream.task import Task

ADAMW = {**SETTINGS, "lr": 2e-3, "weight_decay": 0.1, "optimizer": "adamw"}
SGD = {**SETTINGS, "lr": 0.02, "weight_decay": 0.1, "optimizer": "sgd", "momentum": 0.9}
PLAIN_SGD = {**SETTINGS, "lr": 0.02, "optimizer": "sgd", "momentum": 0.0, "clip": None}
CASES = ["digits", "bert", "modernbert", "gpt2"]


@final
class GradientHook(Rule):
    """The planted fault: projects the gradient, as the released code does, and lets the optimizer do what it likes."""

    name: ClassVar[str] = "gradient-hook"

    def __init__(self, inner: SingularSubspace) -> None:
        self.inner = inner

    def begin_task(self, context: Context) -> None:
        self.inner.begin_task(context)

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        return self.inner.updates(context, gradients)

    def end_task(self, context: Context) -> None:
        self.inner.end_task(context)


def learner_of(case: str, train: dict[str, Any], *, hooked: bool = False, **options: Any) -> Learner:
    model = tiny_model() if case == "digits" else str(tiny_folder(case))
    method = build_method("osf", {"lr_scale": 1.0, **options})
    if hooked:
        rule = GradientHook(SingularSubspace(**options))
        method = Method(linear_layers(lr_scale=1.0), Linear(loss_over="own-task"), (rule,))
    return Learner(model, method, train=train, device="cpu")


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


@dataclass
class Lesson:
    """A weight before and after a task, and what was to be kept of it."""

    before: Tensor
    after: Tensor
    kept: Sides | None

    @property
    def rank(self) -> int:
        return self.kept.left.size() if self.kept else 0

    @property
    def change(self) -> Tensor:
        return (self.after - self.before).double()

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        assert self.kept is not None
        return self.kept.left.basis(), self.kept.right.basis()

    @property
    def overlap(self) -> float:
        left, right = self.sides
        return max(float((left.T @ self.change).norm()), float((self.change @ right).norm()))


def experiences(learner: Learner, task: Task) -> dict[str, Lesson]:
    """Learn a task and watch every linear weight."""
    context = learner.begin(task)
    (rule,) = learner.method.rules
    inner = rule.inner if isinstance(rule, GradientHook) else rule
    assert isinstance(inner, SingularSubspace)
    sides = dict(inner._sides)
    weights = {name: context.model.trained()[name] for name in linear_modules(context)}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    learner.fit(context, lambda report: None)
    found = {n: Lesson(before[n], w.detach().clone(), sides.get(n)) for n, w in weights.items()}
    learner.end(context)
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("train", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_steps_do_not_touch_the_strongest_singular_vectors(case: str, train: dict[str, Any]) -> None:
    learner = learner_of(case, train)
    for task in tasks_of(case)[:2]:
        found = experiences(learner, task)
        assert len(found) >= 12
        assert all(0 < one.rank < min(one.before.shape) for one in found.values())
        assert max(float(one.change.norm()) for one in found.values()) > 0.05
        assert max(one.overlap for one in found.values()) < 1e-5


def test_a_gradient_hook_leaks_under_adamw() -> None:
    learner = learner_of("digits", ADAMW, hooked=True)
    for task in tasks_of("digits")[:2]:
        found = experiences(learner, task).values()
        assert max(one.overlap for one in found) > 0.1
        assert min(one.overlap / float(one.change.norm()) for one in found) > 0.1


def test_with_plain_sgd_steps_and_gradients_are_one() -> None:
    ours, hooked = learner_of("digits", PLAIN_SGD), learner_of("digits", PLAIN_SGD, hooked=True)
    for task in tasks_of("digits")[:2]:
        first, second = experiences(ours, task), experiences(hooked, task)
        for name, one in first.items():
            torch.testing.assert_close(one.after, second[name].after, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", ["digits", "gpt2"])
def test_what_the_layer_says_of_protected_inputs_and_in_protected_directions_stays(case: str) -> None:
    learner, generator = learner_of(case, ADAMW), torch.Generator().manual_seed(0)
    for one in experiences(learner, tasks_of(case)[0]).values():
        left, right = one.sides
        inside = right @ torch.randn(right.shape[1], 5, generator=generator, dtype=torch.float64)
        anything = torch.randn(right.shape[0], 5, generator=generator, dtype=torch.float64)
        old, new = one.before.double(), one.after.double()
        torch.testing.assert_close(new @ inside, old @ inside, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(left.T @ new @ anything, left.T @ old @ anything, atol=1e-5, rtol=1e-5)
        assert float((new @ anything - old @ anything).abs().max()) > 1e-4


def test_the_trainable_rank_is_what_is_left() -> None:
    """The change has rank min(m, n) - k at most, and uses all of it, as low factors of that rank would."""
    for one in experiences(learner_of("digits", ADAMW), tasks_of("digits")[0]).values():
        values = torch.linalg.svdvals(one.change)
        left = min(one.before.shape) - one.rank
        assert float(values[left:].max()) < 2e-6 < float(values[left - 1])


def test_what_is_kept_are_the_strongest_singular_vectors() -> None:
    weight = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    for rank in (3, 9):
        sides = Sides.of(weight, rank)
        for space, vectors in ((sides.left, left[:, :rank]), (sides.right, right[:rank].T)):
            torch.testing.assert_close(space.basis() @ space.basis().T, vectors @ vectors.T, atol=1e-5, rtol=0)
    assert float(values[2] - values[3]) > 0.01


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.integers(0, 1000))
def test_projection_against_the_matrices_written_out(rows: int, columns: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, update = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    rank = min(rank, rows, columns)
    left, _, right = torch.linalg.svd(weight.double(), full_matrices=False)
    left, right = left[:, :rank], right[:rank].T
    expected = (torch.eye(rows) - left @ left.T) @ update.double() @ (torch.eye(columns) - right @ right.T)
    sides = Sides.of(weight, rank)
    assert (sides.left.size(), sides.right.size()) == (rank, rank)
    torch.testing.assert_close(between(update, sides).double(), expected, atol=2e-3, rtol=0)


def test_low_factors_reach_the_same_weights_as_projected_moves() -> None:
    """Any (1 - U U^T) M (1 - V V^T) has rank min(m, n) - k, so U_l S_l V_l^T of that rank can be it."""
    generator = torch.Generator().manual_seed(0)
    weight, update = (torch.randn(6, 9, generator=generator) for _ in range(2))
    low = between(weight + update, Sides.of(weight, 4)).double()
    left, values, right = torch.linalg.svd(low, full_matrices=False)
    rebuilt = left[:, :2] @ torch.diag(values[:2]) @ right[:2]
    torch.testing.assert_close(rebuilt, low, atol=1e-5, rtol=0)


def test_ratios_by_hand() -> None:
    assert retained_ratios({"a": 0.2, "b": 0.6}, 0.1, 0.5) == pytest.approx({"a": 0.3, "b": 0.7})
    assert retained_ratios({"a": 0.0, "b": 0.0}, 0.1, 0.5) == {"a": 0.5, "b": 0.5}
    assert retained_ratios({}, 0.1, 0.5) == {}
    cancelling = retained_ratios({"a": 0.3, "b": -0.3}, 0.1, 0.5)
    assert cancelling == pytest.approx({"a": 0.5, "b": 0.5}), "signed similarities would divide by zero"
    assert [retained_rank(r, 10) for r in (0.0, 0.05, 0.1, 0.99, 1.0, 3.0)] == [0, 0, 1, 9, 9, 9]
    assert retained_rank(0.9, 1) == 0


def test_similarity_takes_the_leading_entries_of_the_wider_side() -> None:
    narrow, wide = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0, 7.0]])
    assert input_similarity(narrow, wide).item() == pytest.approx(0.5**0.5)
    assert input_similarity(wide, narrow).item() == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("case", ["digits", "bert", "gpt2"])
def test_similarities_are_those_of_inputs_and_weights(case: str) -> None:
    learner = learner_of(case, ADAMW)
    context = learner.begin(tasks_of(case)[0])
    modules = linear_modules(context)
    name, module = list(modules.items())[1]
    cosines = []
    weight = module.weight.detach() if case == "gpt2" else module.weight.detach().T
    assert isinstance(weight, Tensor)

    def note(_module: Any, args: Any) -> None:
        rows = args[0] if mask is None else args[0][mask]
        rows = rows.reshape(-1, rows.shape[-1])
        cosines.append(input_similarity(rows, rows @ weight))

    handle = module.register_forward_pre_hook(note)
    with torch.no_grad():
        for batch in context.passes.batches(context.task.data):
            mask = batch.inputs.mask
            context.model.encode(batch)
    handle.remove()
    found = similarities(context, modules, 10_000)
    assert found[name] == pytest.approx(float(torch.cat(cosines).mean()), abs=1e-4)
    assert set(found) == set(modules)
    assert len({round(value, 3) for value in found.values()}) > 3


def test_ranks_differ_between_layers_and_follow_the_last_task() -> None:
    learner = learner_of("digits", ADAMW)
    first, second, _ = digit_tasks()
    started = {name: one.rank for name, one in experiences(learner, first).items()}
    (rule,) = learner.method.rules
    assert isinstance(rule, SingularSubspace)
    ratios = retained_ratios(rule._similarities, 0.1, 0.8)
    expected = {name: retained_rank(ratios[name], 32) for name in started}
    assert len(set(started.values())) > 2
    assert {name: one.rank for name, one in experiences(learner, second).items()} == expected
    assert started != expected


def test_equal_shares_give_every_layer_the_same() -> None:
    found = experiences(learner_of("digits", ADAMW, minimum=0.25, target=0.25), digit_tasks()[0])
    assert {one.rank for one in found.values()} == {8}


def test_the_first_task_may_be_free() -> None:
    learner = learner_of("digits", ADAMW, from_start=False)
    first, second = (experiences(learner, task) for task in digit_tasks()[:2])
    assert {one.rank for one in first.values()} == {0}
    assert min(one.rank for one in second.values()) > 0
    assert max(one.overlap for one in second.values()) < 1e-5


def test_other_tensors_of_the_model_keep_every_bit() -> None:
    learner = learner_of("digits", ADAMW)
    base = learner.backbone.base_parameters()
    before = {name: value.detach().clone() for name, value in base.items()}
    learner.learn(digit_tasks()[0])
    moved = {name for name, value in base.items() if not torch.equal(value, before[name])}
    assert len(moved) == 18
    assert moved == set(learner.method.adapter.trained())


def test_with_the_whole_model_other_tensors_rest() -> None:
    with pytest.raises(CombinationError, match="would never move"):
        compose({"adapter": "full", "rules": ["singular-subspace"]})
    method = compose({"adapter": {"full": {"lr_scale": 1.0}}, "rules": [{"singular-subspace": {"from_start": False}}]})
    learner = Learner(tiny_model(), method, train=ADAMW)
    learner.learn(digit_tasks()[0])
    base = learner.backbone.base_parameters()
    before = {name: value.detach().clone() for name, value in base.items()}
    learner.learn(digit_tasks()[1])
    moved = {name for name, value in base.items() if not torch.equal(value, before[name])}
    assert len(moved) == 18
    assert len(base) > 18


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(CombinationError, match="linear-layers"):
        compose({"adapter": "lora", "rules": ["singular-subspace"]})
    for options in ({"minimum": 0.9}, {"target": 1.1}, {"examples": 0}):
        with pytest.raises(ConfigError):
            SingularSubspace(**options)


@pytest.mark.parametrize("case", ["bert", "gpt2"])
def test_texts_resume_exactly(case: str) -> None:
    learner, again = learner_of(case, ADAMW), learner_of(case, ADAMW)
    assert difference_after_a_stop(learner, again, word_tasks()) is None
