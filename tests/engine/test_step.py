"""The step's hooks: what rules may do to gradients and moves, and what momentum cannot escape."""

from itertools import pairwise

import pytest
import torch

from contune.adapter.lora.peft_adapter import lora
from contune.checks.run import SETTINGS, digit_tasks, tiny_model
from contune.contract.parts import Rule
from contune.contract.settings import TrainSettings
from contune.engine.learner import Learner
from contune.engine.steps.optimizer import rate_factor
from contune.head.linear import Linear
from contune.method.catalog import compose
from contune.method.method import Method


class Spy(Rule):
    """Masks one tensor's move and another's gradient, and remembers what it saw."""

    name = "spy"

    def __init__(self, *, still: str = "", starved: str = "") -> None:
        self.still, self.starved = still, starved
        self.steps = 0
        self.order: list[str] = []

    def before_step(self, context, batch):
        self.order.append("before")

    def gradients(self, context, gradients):
        self.order.append("gradients")
        return {name: g for name, g in gradients.items() if not self.starved or self.starved not in name}

    def updates(self, context, updates):
        self.order.append("moves")
        return {n: torch.zeros_like(m) if self.still and self.still in n else m for n, m in updates.items()}

    def after_step(self, context):
        self.order.append("after")
        self.steps += 1


def trained_with(rule: Rule | None) -> tuple[Learner, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    learner = Learner(tiny_model(), Method(lora(rank=2), Linear(), (rule,) if rule else ()), train=SETTINGS)
    context = learner.begin(digit_tasks()[0])
    before = {name: p.detach().clone() for name, p in context.model.trained().items()}
    learner.fit(context, lambda report: None)
    return learner, before, {name: p.detach().clone() for name, p in context.model.trained().items()}


def test_hooks_come_in_order_at_every_step() -> None:
    spy = Spy()
    learner, _, _ = trained_with(spy)
    assert spy.steps == learner.ledger.steps > 0
    assert spy.order == ["before", "gradients", "moves", "after"] * spy.steps


def test_hooks_that_change_nothing_change_nothing() -> None:
    _, _, plain = trained_with(None)
    _, _, spied = trained_with(Spy())
    for name, value in plain.items():
        torch.testing.assert_close(spied[name], value, rtol=1e-5, atol=1e-7)


def test_a_masked_move_keeps_every_bit_in_spite_of_weight_decay_and_momentum() -> None:
    _, before, after = trained_with(Spy(still="lora_A"))
    for name in before:
        assert torch.equal(before[name], after[name]) == ("lora_A" in name)


def test_a_tensor_without_gradient_is_not_stepped() -> None:
    _, before, after = trained_with(Spy(starved="head.bias"))
    assert torch.equal(before["head.bias"], after["head.bias"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_schedules_join_where_they_should() -> None:
    cosine = TrainSettings(schedule="cosine", warmup=0.2, floor=0.1)
    rates = [rate_factor(cosine, step, 1000) for step in range(1000)]
    assert rates[199] == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=1e-4)
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.006  # continuous at the join
    infinite = TrainSettings(schedule="infinite", warmup=0.2, cooldown=0.5, floor=0.25)
    rates = [rate_factor(infinite, step, 1000) for step in range(1000)]
    assert (rates[199], rates[700], rates[-1]) == (1.0, 0.25, 0.25)
    assert {rate_factor(infinite, step, 1000, task=1) for step in range(1000)} == {0.25}
    last = infinite.with_changes({"anneal_task": 3, "annealing": 0.2})
    assert {rate_factor(last, step, 1000, task=1) for step in range(1000)} == {0.25}
    rates = [rate_factor(last, step, 1000, task=2) for step in range(1000)]
    assert rates[799] == 0.25
    assert rates[899] == pytest.approx(0.25 * 0.1**0.5)  # exponential: half of the way in logarithms
    assert rates[999] == pytest.approx(0.025)
    with pytest.raises(ValueError, match="no level to fall from"):
        TrainSettings(schedule="cosine", anneal_task=2)
    with pytest.raises(ValueError, match="floor 0"):
        TrainSettings(schedule="infinite")


def test_replay_by_ratio_is_that_share_of_every_step() -> None:
    method = compose({"adapter": "lora", "head": "linear", "rules": [{"replay": {"ratio": 0.25, "size": 50}}]})
    learner = Learner(tiny_model(), method, train={"epochs": 1, "batch_size": 12})
    first, second = digit_tasks()[:2]
    learner.learn(first)
    context = learner.begin(second)
    chosen = learner.method.rules[0].select(context, 0, 0)["replay"]
    assert len(chosen.rows) / (len(chosen.rows) + 12) == 0.25


@pytest.mark.parametrize(
    ("train", "steps"), [({"min_steps": 10}, 12), ({"min_steps": 3}, 6), ({"batches": 4, "min_steps": 9}, 12)]
)
def test_a_task_has_its_fewest_steps_in_whole_passes(train: dict, steps: int) -> None:
    learner = Learner(tiny_model(), Method(lora(rank=2), Linear()), train={**SETTINGS, "epochs": 2, **train})
    context = learner.begin(digit_tasks()[0])  # 48 examples, three batches of 16
    seen: list[int] = []
    learner.fit(context, lambda report: seen.append(report.steps))
    assert (context.task.steps, len(seen), set(seen)) == (steps, steps, {steps})
    assert context.task.epochs == steps / context.task.steps_per_epoch


def test_no_passes_stay_none_whatever_the_fewest_steps() -> None:
    learner = Learner(tiny_model(), Method(lora(rank=2), Linear()), train={**SETTINGS, "epochs": 0, "min_steps": 9})
    assert learner.begin(digit_tasks()[0]).task.steps == 0
