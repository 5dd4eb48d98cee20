"""GEM, A-GEM and OGD: what a step may not do to the past, whatever the optimizer; the program; bases; resume."""

from collections.abc import Mapping
from itertools import product
from typing import Any, ClassVar, final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from language_tasks import experience
from resume_helpers import difference_after_a_stop
from torch import Tensor
from torch.nn import functional
from word_tasks import tiny_folder, word_tasks

from contune.adapter.lora.peft_adapter import lora
from contune.checks.run import SETTINGS, digit_tasks, tiny_model
from contune.contract.context import Context
from contune.contract.data import Selection
from contune.contract.parts import Rule, Tensors
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head.linear import Linear
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.rule.project.gradient_memory import (
    AverageGradientMemory,
    GradientMemory,
    drawn_rows,
    harmless,
    inner_product,
    loss_gradient,
    multipliers,
    not_uphill,
)
from contune.rule.project.orthogonal_gradients import (
    OrthogonalGradients,
    answer_gradient,
    coordinates,
    enlarged,
    orthogonal,
)
from contune.stream.task import Task

ADAMW = {**SETTINGS, "lr": 5e-3, "weight_decay": 0.1, "optimizer": "adamw"}
SGD = {**SETTINGS, "lr": 0.05, "weight_decay": 0.1, "optimizer": "sgd", "momentum": 0.9}
PLAIN_SGD = {**SETTINGS, "lr": 0.05, "optimizer": "sgd", "momentum": 0.0, "clip": None}
RULES = {
    "gem": lambda: GradientMemory(size=20, batch_size=8, margin=0.5),
    "a-gem": lambda: AverageGradientMemory(size=20, batch_size=8),
    "ogd": lambda: OrthogonalGradients(size=12),
}


def references(rule: Rule) -> list[Tensors]:
    """The gradients of the past that the rule goes by at this step."""
    if isinstance(rule, GradientMemory):
        return list(rule._memories)
    if isinstance(rule, AverageGradientMemory):
        return [rule._reference] if rule._reference else []
    assert isinstance(rule, OrthogonalGradients)
    count = len(next(iter(rule._basis.values()))) if rule._basis else 0
    return [{name: rows[at] for name, rows in rule._basis.items()} for at in range(count)]


def cosine(update: Tensors, reference: Tensors) -> float:
    grown = {
        name: functional.pad(r.reshape(-1), (0, update[name].numel() - r.numel())) for name, r in reference.items()
    }
    flat = {name: update[name].reshape(-1) for name in grown}
    scale = (inner_product(update, update) * inner_product(grown, grown)) ** 0.5
    return inner_product(grown, flat) / max(scale, 1e-30)


@final
class Watcher(Rule):
    """Listed behind a rule: cosines of every step that is taken with every gradient that it must not follow."""

    name: ClassVar[str] = "watcher"

    def __init__(self, watched: Rule) -> None:
        self.watched, self.kept = watched, list[Tensors]()
        self.cosines: list[float] = []

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        self.kept = references(self.watched)
        return gradients

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        self.cosines += [cosine(updates, reference) for reference in self.kept]
        return updates


@final
class GradientHook(Rule):
    """The planted fault: projects the gradient, as the papers' codes do, and lets the optimizer do what it likes."""

    name: ClassVar[str] = "gradient-hook"

    def __init__(self, inner: Rule) -> None:
        self.inner = inner

    def begin_task(self, context: Context) -> None:
        self.inner.begin_task(context)

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        return self.inner.select(context, epoch, step)

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        self.inner.gradients(context, gradients)
        kept = references(self.inner)
        if isinstance(self.inner, OrthogonalGradients):
            return self.inner.updates(context, gradients)
        down = {name: -value for name, value in gradients.items()}
        margin = self.inner.margin if isinstance(self.inner, GradientMemory) else 0.0
        bent = harmless(down, kept, margin) if kept else down
        return {name: -value for name, value in bent.items()}

    def end_task(self, context: Context) -> None:
        self.inner.end_task(context)


def watched(name: str, train: dict[str, Any], case: str, *, hooked: bool = False) -> tuple[Learner, Watcher]:
    rule = RULES[name]()
    watcher = Watcher(rule)
    rules = (GradientHook(rule) if hooked else rule, watcher)
    model = tiny_model() if case == "digits" else str(tiny_folder(case))
    method = Method(lora(rank=4), Linear(loss_over="own-task"), rules)
    return Learner(model, method, train=train, device="cpu"), watcher


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("case", "train"), [("digits", ADAMW), ("bert", ADAMW), ("digits", SGD)])
def test_no_step_follows_what_it_must_not(name: str, case: str, train: dict[str, Any]) -> None:
    learner, watcher = watched(name, train, case)
    for task in tasks_of(case):
        learner.learn(task)
    found = np.array(watcher.cosines)
    assert len(found) > 5
    assert found.max() < 1e-5
    if name == "ogd":
        assert np.abs(found).max() < 1e-5
    else:
        assert found.min() < -1e-3, "a step down an old loss is left alone"


@pytest.mark.parametrize("name", RULES)
def test_a_gradient_hook_follows_it_under_adamw(name: str) -> None:
    learner, watcher = watched(name, ADAMW, "digits", hooked=True)
    for task in digit_tasks():
        learner.learn(task)
    assert max(watcher.cosines) > 0.03


@pytest.mark.parametrize("name", RULES)
def test_with_plain_sgd_steps_and_gradients_are_one(name: str) -> None:
    ends = []
    for hooked in (False, True):
        learner, _ = watched(name, PLAIN_SGD, "digits", hooked=hooked)
        for task in digit_tasks()[: 3 if name == "gem" else 2]:
            learner.learn(task)
        ends.append(learner.state())
    compared = [n for n in ends[0].tensors if n.startswith(("adapter", "head"))]
    assert len(compared) > 4
    for tensor in compared:
        torch.testing.assert_close(ends[0].tensors[tensor], ends[1].tensors[tensor], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", RULES)
def test_without_a_memory_it_is_sequential_lora(name: str) -> None:
    plain = Learner(tiny_model(), Method(lora(rank=8), Linear(loss_over="own-task")), train=ADAMW)
    ruled = Learner(tiny_model(), build_method(name, {"size": 0}), train=ADAMW)
    full = Learner(tiny_model(), build_method(name, {}), train=ADAMW)
    for learner in (plain, ruled, full):
        for task in digit_tasks()[:2]:
            learner.learn(task)
    differences = []
    for tensor, value in plain.state().tensors.items():
        torch.testing.assert_close(ruled.state().tensors[tensor], value, atol=1e-4, rtol=1e-3)
        differences.append(float((full.state().tensors[tensor] - value).abs().max()))
    assert max(differences) > 5e-3


def brute_force(gram: np.ndarray, slopes: np.ndarray, margin: float) -> float:
    """The least value over all choices of which entries rest at the margin."""
    best = np.inf
    for chosen in product([False, True], repeat=len(gram)):
        free, v = np.array(chosen), np.full(len(gram), margin)
        if free.any():
            rest = slopes[free] + gram[np.ix_(free, ~free)] @ v[~free]
            v[free] = np.linalg.lstsq(gram[np.ix_(free, free)], -rest, rcond=None)[0]
        if (v >= margin - 1e-9).all():
            best = min(best, float(v @ gram @ v / 2 + slopes @ v))
    return best


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10_000), st.sampled_from([0.0, 0.5]), st.booleans())
def test_the_program_is_solved(count: int, width: int, seed: int, margin: float, twice: bool) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(count, width))
    if twice:
        rows = np.concatenate([rows, rows[:1]])  # two memories with one gradient: a singular program
    gram, slopes = rows @ rows.T, rows @ generator.normal(size=width)
    v = multipliers(gram, slopes, margin)
    assert (v >= margin).all()
    assert (gram @ v + slopes >= -1e-6).all(), "every memory's product with the step's gradient is not negative"
    assert v @ gram @ v / 2 + slopes @ v <= brute_force(gram, slopes, margin) + 1e-6


def vectors(*values: list[float]) -> list[dict[str, Tensor]]:
    return [{"a": torch.tensor(value[:2]), "b": torch.tensor(value[2:])} for value in values]


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_gem_with_one_memory_is_a_gem(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    update, memory = vectors(*torch.randn(2, 5, generator=generator).tolist())
    one, other = harmless(update, [memory], 0.0), not_uphill(update, memory)
    for name in update:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4)
    assert inner_product(memory, one) < 1e-5


def test_steps_that_harm_nothing_are_left_alone() -> None:
    update, away, across = vectors([1.0, 0.0, 0.0], [-1.0, 2.0, 0.0], [0.0, 0.0, 3.0])
    assert harmless(update, [away, across], 0.5) is update
    assert not_uphill(update, away) is update


def test_gem_by_hand() -> None:
    """Margin 1/2 with g = (1, 1), one memory (-2, 0): v = max(1/2, 2/4) and beyond it at margin 2."""
    (down, memory) = ({"a": torch.tensor([-1.0, -1.0])}, {"a": torch.tensor([-2.0, 0.0])})
    assert harmless(down, [memory], 0.5)["a"].tolist() == [0.0, -1.0]
    assert harmless(down, [memory], 2.0)["a"].tolist() == [3.0, -1.0]
    left, below = {"a": torch.tensor([-1.0, 0.0])}, {"a": torch.tensor([0.0, -1.0])}
    assert harmless(down, [left, below], 0.0)["a"].abs().max() < 1e-6


def test_memory_gradients_are_those_of_the_loss_at_the_weights_of_the_step() -> None:
    learner = Learner(tiny_model(), build_method("a-gem", {"size": 10, "batch_size": 10}), train=ADAMW)
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    (rule,) = learner.method.rules
    assert isinstance(rule, AverageGradientMemory)
    assert rule._kept.ready is not None
    found = loss_gradient(context, rule._kept.ready, np.arange(10))
    batch = context.passes.batch([(rule._kept.ready, np.arange(10))])
    logits = context.model.forward(batch).logits[:, :2]  # the first task's own classes
    functional.cross_entropy(logits, batch.labels).backward()  # type: ignore[no-untyped-call]
    for name, value in context.model.trained().items():
        expected = torch.zeros_like(value) if value.grad is None else value.grad
        torch.testing.assert_close(found.get(name, torch.zeros_like(value)), expected, atol=1e-5, rtol=1e-4)


def test_draws_differ_by_step_and_are_repeatable() -> None:
    learner = Learner(tiny_model(), build_method("gem", {}), train=ADAMW)
    context = learner.begin(digit_tasks()[0])
    first, again, other = (drawn_rows(context, ("gem", step), 40, 8).tolist() for step in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 8
    assert drawn_rows(context, ("gem", 0), 5, 8).tolist() == [0, 1, 2, 3, 4]


def test_gem_keeps_a_memory_for_every_task_and_a_gem_one_for_all() -> None:
    sizes = []
    for name in ("gem", "a-gem"):
        learner = Learner(tiny_model(), build_method(name, {"size": 10}), train={**ADAMW, "epochs": 1})
        for task in digit_tasks():
            learner.learn(task)
        state = learner.method.rules[0].state()
        sizes.append(
            [state.inner(f"task{t}").tensors["columns"].tolist() for t in range(3)] if name == "gem" else state
        )
    per_task, one = sizes
    assert isinstance(per_task, list)
    assert [len(columns) for columns in per_task] == [10, 10, 10]
    assert [{column // 2 for column in columns} for columns in per_task] == [{0}, {1}, {2}]
    assert isinstance(one, State)
    assert len(one.tensors["columns"]) == 10
    assert set((one.tensors["columns"] // 2).tolist()) == {0, 1, 2}


def flat(basis: Tensors) -> Tensor:
    return torch.cat([basis[name] for name in sorted(basis)], dim=1)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_bases_are_orthonormal_and_span_what_was_given(seed: int, count: int) -> None:
    generator, basis = torch.Generator().manual_seed(seed), {}
    given_vectors = [
        {"a": torch.randn(2, 2, generator=generator), "b": torch.randn(2, generator=generator)} for _ in range(count)
    ]
    given_vectors.append({name: 3 * value for name, value in given_vectors[0].items()})  # nothing new
    for vector in given_vectors:
        basis = enlarged(basis, vector)
    rows = flat(basis)
    assert count - 1 <= len(rows) <= count
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-4, rtol=0)
    for vector in given_vectors:
        left = orthogonal(basis, vector)
        assert max(float(value.abs().max()) for value in left.values()) < 1e-2


def test_the_released_ports_fault_is_not_here() -> None:
    """One and the same direction given again and again stays one direction, and rounding is none."""
    basis: Tensors = {}
    for _ in range(5):
        basis = enlarged(basis, {"a": torch.tensor([1.0, 1e-6])})
    assert len(basis["a"]) == 1
    assert enlarged(basis, {"a": torch.zeros(2)}) is basis


def test_directions_of_a_smaller_head_leave_its_new_rows_free() -> None:
    basis = enlarged({}, {"head": torch.ones(1, 2)})
    moved = orthogonal(basis, {"head": torch.ones(2, 2)})
    torch.testing.assert_close(moved["head"], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert coordinates(basis, {"head": torch.ones(2, 2)}).tolist() == pytest.approx([2**0.5])


def test_ogd_keeps_the_gradients_of_right_answers() -> None:
    learner = Learner(tiny_model(), build_method("ogd", {"size": 5}), train=ADAMW)
    context = learner.begin(digit_tasks()[0])
    learner.fit(context, lambda report: None)
    gradient = answer_gradient(context, np.array([3]))
    row = int(context.task.data.labels[3])
    assert float(gradient["head.bias"][row]) == 1
    assert float(gradient["head.bias"].abs().sum()) == 1
    learner.end(context)
    (rule,) = learner.method.rules
    assert isinstance(rule, OrthogonalGradients)
    assert len(rule._basis["head.bias"]) == 5


@pytest.mark.parametrize("name", ["gem", "ogd"])
def test_old_answers_change_less(name: str) -> None:
    """Against the same steps without the rule: scores of old examples for OGD, their loss for GEM."""
    first, second = digit_tasks()[:2]
    train = {**ADAMW, "lr": 1e-3, "weight_decay": 0.0}
    harm = []
    for size in (0, 48):
        more = {"batch_size": None, "margin": 0.0} if name == "gem" else {}
        learner = Learner(tiny_model(), build_method(name, {"size": size, **more}), train=train)
        learner.learn(first)
        old = learner.test_dataset(first)
        before = learner.reading(old).passes.logits(old)[:, :2]
        learner.learn(second)
        after = learner.reading(old).passes.logits(old)[:, :2]
        labels = torch.from_numpy(old.labels)
        if name == "gem":
            harm.append(float(functional.cross_entropy(after, labels) - functional.cross_entropy(before, labels)))
        else:
            harm.append(float((after - before).square().mean()))
    assert harm[1] < 0.5 * harm[0]


@pytest.mark.parametrize("name", RULES)
def test_what_makes_no_sense_is_refused(name: str) -> None:
    rule = build_method(name, {}).rules[0].name
    with pytest.raises(CombinationError, match="trains a new module in every task"):
        compose({"adapter": "bottleneck-per-task", "rules": [rule]})
    with pytest.raises(ConfigError, match="at least 0"):
        build_method(name, {"size": -1})


@pytest.mark.parametrize("name", RULES)
def test_texts_resume_exactly(name: str) -> None:
    folder = str(tiny_folder("bert"))
    learner, again = (Learner(folder, build_method(name, {"size": 6}), train=ADAMW) for _ in range(2))
    assert difference_after_a_stop(learner, again, word_tasks()) is None


def test_in_language_an_answers_score_is_the_mean_over_its_tokens() -> None:
    learner = Learner(str(tiny_folder("llama-writer")), "ogd", objective="write", train={**SETTINGS, "epochs": 1})
    context = learner.begin(experience("big"))
    found = answer_gradient(context, np.array([1]))
    batch = context.passes.batch([(context.task.data, np.array([1]))])
    scores = context.model.forward(batch).logits
    assert len(scores) == len(batch.labels) > 1
    mean = torch.stack([scores[at, label] for at, label in enumerate(batch.labels.tolist())]).mean()
    name, value = next((n, v) for n, v in context.model.trained().items() if "lora_B" in n)
    torch.testing.assert_close(found[name], torch.autograd.grad(mean, value)[0], atol=1e-5, rtol=1e-4)
