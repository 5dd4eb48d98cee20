"""Refresh learning: the move before a step is as large as promised, upwards, and the host's own where it is none."""

from typing import Any

import numpy as np
import pytest
import torch
from resume_helpers import go_on, learn_keeping
from torch import Tensor
from torch.nn import functional
from word_tasks import tiny_folder, word_tasks

from contune.checks.run import SETTINGS, accuracy, copied, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.method.catalog import build_method, compose
from contune.rule.align.refresh import Refresh, grown_to, unlearned
from contune.stream.task import Task


def parts_of(learner: Learner) -> State:
    state = copied(learner.state())
    return State({n: t for n, t in state.tensors.items() if n.startswith(("adapter/", "head/"))})


def learned(method: str, tasks: int = 3, **options: Any) -> Learner:
    learner = Learner(tiny_model(), build_method(method, options), train=SETTINGS)
    for task in digit_tasks()[:tasks]:
        learner.learn(task)
    return learner


@pytest.fixture
def trained() -> tuple[Context, Batch]:
    """A learner in its second task, a few steps in, with a batch."""
    learner = Learner(tiny_model(), "lora", train=SETTINGS)
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    learner.fit(context, lambda report: None)
    rows = np.arange(20)
    return context, context.passes.batch([(context.task.data, rows)])


def values(context: Context) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in context.model.trained().items()}


def loss(context: Context, batch: Batch) -> float:
    with torch.no_grad():
        return float(functional.cross_entropy(context.model.forward(batch).logits, batch.labels))


@pytest.mark.parametrize("host", ["der++", "er"])
def test_without_a_move_it_is_the_host_to_the_bit(host: Any) -> None:
    plain, still, moved = (
        learned(host, 2),
        learned("refresh", 2, host=host, delta=0.0),
        learned("refresh", 2, host=host),
    )
    assert same_state(parts_of(plain), parts_of(still)) is None
    assert same_state(parts_of(plain), parts_of(moved)) is not None


@pytest.mark.parametrize("delta", [1e-5, 1e-2])
def test_the_move_is_delta_of_every_tensors_norm(trained: tuple[Context, Batch], delta: float) -> None:
    context, batch = trained
    rule = Refresh(delta=delta, noise=0.0)
    before = {name: value.double() for name, value in values(context).items()}
    gradients = rule._gradients(context, batch)
    assert all(bool(gradient.any()) for gradient in gradients.values())
    for name, value in before.items():
        after = unlearned(value, gradients[name].double(), torch.zeros_like(value), torch.zeros_like(value), delta)
        assert float((after - value).norm() / value.norm()) == pytest.approx(delta, rel=1e-6)
    rule.before_step(context, batch)
    for name, value in values(context).items():
        expected = (
            before[name] + delta * gradients[name].double() * before[name].norm() / gradients[name].double().norm()
        )
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("delta", [1e-4, 1e-3, 1e-2])
def test_the_loss_of_the_batch_rises(trained: tuple[Context, Batch], delta: float) -> None:
    context, batch = trained
    before = loss(context, batch)
    Refresh(delta=delta, noise=0.0).before_step(context, batch)
    assert loss(context, batch) > before


def test_a_move_downwards_would_be_noticed(trained: tuple[Context, Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: descent in place of ascent."""
    context, batch = trained
    before, right = loss(context, batch), unlearned
    monkeypatch.setattr("contune.rule.align.refresh.unlearned", lambda v, g, f, n, d: right(v, -g, f, n, d))
    Refresh(delta=1e-2, noise=0.0).before_step(context, batch)
    assert loss(context, batch) < before


def test_important_entries_move_less_and_noise_moves_the_rest() -> None:
    value, gradient = torch.ones(4), torch.tensor([1.0, 1.0, 0.0, 0.0])
    fisher = torch.tensor([0.0, 1000.0, 0.0, 1000.0])
    moved = unlearned(value, gradient, fisher, torch.tensor([0.0, 0.0, 0.5, 0.5]), 0.1) - value
    expected = 0.1 * torch.tensor([2 / 2**0.5, 1 / 2**0.5, 0.5, 0.25])
    assert torch.allclose(moved, expected)


def test_a_tensor_without_gradient_moves_by_noise_alone() -> None:
    value = torch.zeros(1000)
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    moved = unlearned(value, torch.zeros(1000), torch.zeros(1000), 1e-3 * noise, 1e-5)
    assert torch.allclose(moved, 1e-8 * noise)


def test_fisher_is_the_label_weighted_square_of_single_gradients() -> None:
    learner = learned("refresh", 1, examples=5, decay=0.5)
    rule = learner.method.rules[0]
    context = learner.context([digit_tasks()[0]], 0)
    expected = {name: torch.zeros_like(value) for name, value in context.model.trained().items()}
    from contune.contract.randomness import numpy_generator

    chosen = numpy_generator(0, "importance", 1).permutation(48)[:5]
    assert context.task.index == 1
    rule.end_task(context)
    for row in chosen:
        batch = context.passes.batch([(context.task.data, np.array([row]))])
        log_p = functional.log_softmax(context.model.forward(batch).logits[0], dim=0)[int(batch.labels[0])]
        found = torch.autograd.grad(log_p, list(context.model.trained().values()))
        for name, gradient in zip(expected, found, strict=True):
            expected[name] += float(log_p.detach().exp()) * gradient.square() / 5
    first = learned("refresh", 1, examples=5, decay=0.5).method.rules[0].state().tensors
    for name, value in rule.state().tensors.items():
        assert torch.allclose(value, expected[name] + 0.5 * first[name], rtol=1e-4, atol=1e-9)


def test_fisher_grows_with_the_head() -> None:
    grown = grown_to(torch.ones(2, 3), torch.empty(4, 3))
    assert grown.tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2
    assert grown_to(None, torch.empty(2)).tolist() == [0.0, 0.0]


def test_shares_of_several_processes_add_up_to_the_same_gradient(trained: tuple[Context, Batch]) -> None:
    context, batch = trained
    rule = Refresh()
    whole = rule._gradients(context, batch)
    shares = []
    for rank in (0, 1):
        rows = np.arange(20)[rank::2]
        shares.append(rule._gradients(context, context.passes.batch([(context.task.data, rows)], counts={"task": 20})))
    for name, gradient in whole.items():
        assert torch.allclose(shares[0][name] + shares[1][name], gradient, atol=1e-6)
    assert all(not bool(gradient.any()) for gradient in rule._gradients(context, None).values())


def test_a_process_without_rows_makes_the_same_noise(trained: tuple[Context, Batch]) -> None:
    context, _ = trained
    start, ends = values(context), []
    for _ in range(2):
        context.model.write(start)
        Refresh(delta=1.0, noise=1.0).before_step(context, None)
        ends.append(values(context))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in start)
    assert not torch.equal(ends[0]["head.weight"], start["head.weight"])


def test_replayed_rows_are_not_unlearned() -> None:
    learner = learned("refresh", 1, delta=1e-2, noise=0.0)
    context = learner.begin(digit_tasks()[1])
    rule = learner.method.rules[0]
    assert isinstance(rule, Refresh)
    rows, old = np.arange(8), learner.context([digit_tasks()[0]], 0).task.data
    segments, counts = {"task": slice(0, 8), "der-labels": slice(8, 16)}, {"task": 8, "der-labels": 8}
    both = context.passes.batch([(context.task.data, rows), (old, rows)], segments=segments, counts=counts)
    alone = context.passes.batch([(context.task.data, rows)])
    for name, gradient in rule._gradients(context, alone).items():
        assert torch.allclose(rule._gradients(context, both)[name], gradient, atol=1e-6)


def test_resumes_inside_the_second_task() -> None:
    def fresh() -> Learner:
        return Learner(tiny_model(), build_method("refresh", {"delta": 1e-2}), train=SETTINGS)

    whole = fresh()
    whole.learn(digit_tasks()[0])
    halfway = learn_keeping(whole, digit_tasks()[1], step=4)
    again = fresh()
    go_on(again, halfway)
    assert same_state(whole.state(), again.state()) is None


@pytest.mark.parametrize("config", [{"adapter": "none"}, {"adapter": "lora-per-task"}, {"adapter": "prompt-pool"}])
def test_it_plugs_into_other_carriers(config: dict[str, Any]) -> None:
    rules = [{"refresh": {"delta": 1e-3, "examples": 8}}]
    learner = Learner(tiny_model(), compose({**config, "head": "linear", "rules": rules}), train=SETTINGS)
    for task in digit_tasks()[:2]:
        learner.learn(task)
    assert accuracy(learner, digit_tasks()[1:2]) > 0.5


def test_texts_in_tasks_of_unequal_size() -> None:
    tasks: list[Task] = word_tasks((1, 3, 2))
    train = {"epochs": 8, "batch_size": 8, "lr": 5e-3}
    learner = Learner(tiny_folder("bert"), build_method("refresh", {"delta": 1e-3}), train=train)
    for task in tasks:
        learner.learn(task)
    assert accuracy(learner, tasks) > 0.6
    assert learner.base_unchanged()
