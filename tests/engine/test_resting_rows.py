"""Head rows of classes that have no part in a step rest, and weight decay and momentum do not move them."""

from typing import Any

import pytest
import torch

from contune.checks.run import SETTINGS, digit_tasks, tiny_model
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.engine.steps import loop
from contune.method.catalog import compose

DECAY = {**SETTINGS, "lr": 2e-2, "weight_decay": 0.3}


def learner_of(head: Any, train: dict[str, Any], kind: Any = None, rules: Any = ()) -> Learner:
    method = compose({"adapter": {"lora": {"rank": 2}}, "head": head, "rules": list(rules)})
    return Learner(tiny_model(), method, train=train, kind=kind)


def old_rows(learner: Learner) -> tuple[State, State]:
    """The head's rows of the first task, before and after the second."""
    first, second, _ = digit_tasks()
    learner.learn(first)
    before = learner.state().inner("head").tensors
    learner.learn(second)
    after = learner.state().inner("head").tensors
    rows = [name for name in before if name in learner.method.head.class_rows]
    return tuple(State({name: each[name][:2].clone() for name in rows}) for each in (before, after))  # type: ignore[return-value]


def largest_move(learner: Learner) -> float:
    before, after = old_rows(learner)
    return max(float((before.tensors[name] - after.tensors[name]).abs().max()) for name in before.tensors)


@pytest.mark.parametrize("head", ["linear", "cosine", "scaled-linear"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_rows_of_other_classes_keep_every_bit(head: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train = {**DECAY, "optimizer": optimizer}
    assert largest_move(learner_of({head: {"loss_over": "own-task"}}, train)) == 0.0
    monkeypatch.setattr(
        loop, "resting_rows", lambda context, selections: {}
    )  # the fault: the optimizer decays all rows
    assert largest_move(learner_of({head: {"loss_over": "own-task"}}, train)) > 1e-3


def test_rows_rest_where_tasks_are_named_though_the_head_asks_for_all_classes() -> None:
    assert largest_move(learner_of({"linear": {"loss_over": "seen"}}, DECAY, "task-incremental")) == 0.0


def test_rows_that_compete_or_are_held_by_a_rule_go_on_learning() -> None:
    own = {"linear": {"loss_over": "own-task"}}
    assert largest_move(learner_of({"linear": {"loss_over": "seen"}}, DECAY)) > 1e-3
    assert largest_move(learner_of(own, DECAY, rules=["distillation"])) > 0.0
    assert largest_move(learner_of(own, DECAY, rules=[{"replay": {"size": 20, "batch_size": 8}}])) > 1e-3


def test_what_the_optimizer_remembers_of_a_resting_row_rests_too() -> None:
    learner = learner_of({"linear": {"loss_over": "own-task"}}, {**DECAY, "optimizer": "adam"})
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    memory: dict[str, torch.Tensor] = {}
    learner.fit(context, lambda report: memory.update(report.memory()))
    assert float(memory["head.weight|exp_avg"][:2].abs().max()) == 0.0
    assert float(memory["head.weight|exp_avg"][2:].abs().max()) > 0.0
