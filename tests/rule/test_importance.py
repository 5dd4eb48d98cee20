"""Importance is measured by the likelihood, or the scores, that were trained: over the classes that compete."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from contune.checks.run import SETTINGS, digit_tasks, tiny_model
from contune.contract.context import Context
from contune.contract.model import Model
from contune.contract.randomness import numpy_generator
from contune.engine.learner import Learner
from contune.method.catalog import compose

COUNT = 6
ByHand = Callable[[Tensor, Tensor, list[int]], Tensor]
STREAMS = [("task-incremental", "seen"), ("class-incremental", "own-task")]


def second_task(rule: Any, kind: Any, loss_over: str) -> tuple[Learner, Context]:
    """A learner of two tasks whose second is trained and not ended yet."""
    method = compose({"adapter": {"lora": {"rank": 2}}, "head": {"linear": {"loss_over": loss_over}}, "rules": [rule]})
    learner = Learner(tiny_model(), method, kind=kind, train=SETTINGS)
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    learner.fit(context, lambda report: None)
    return learner, context


def log_gradient(scores: Tensor, labels: Tensor, own: list[int]) -> Tensor:
    """Gradient (n, C) of log p(label) by the scores, p over the own columns: 1 - p_y at the label, -p_c beside it."""
    found = torch.zeros_like(scores)
    found[:, own] = -torch.softmax(scores[:, own], dim=1)
    found[torch.arange(len(scores)), labels] += 1
    return found


def fisher_by_hand(scores: Tensor, labels: Tensor, own: list[int]) -> Tensor:
    return log_gradient(scores, labels, own).square()


def weighted_by_hand(scores: Tensor, labels: Tensor, own: list[int]) -> Tensor:
    p = torch.softmax(scores[:, own], dim=1)[torch.arange(len(scores)), labels - min(own)]
    return p[:, None] * fisher_by_hand(scores, labels, own)


def norm_by_hand(scores: Tensor, labels: Tensor, own: list[int]) -> Tensor:
    del labels
    found = torch.zeros_like(scores)
    found[:, own] = (2 * scores[:, own]).abs()
    return found


RULES: list[tuple[Any, str, ByHand]] = [
    ({"ewc": {"examples": COUNT, "fisher": "empirical", "decay": 0.0}}, "importance/head.bias", fisher_by_hand),
    ({"mas": {"examples": COUNT}}, "importance/head.bias", norm_by_hand),
    ({"refresh": {"examples": COUNT, "decay": 0.0}}, "head.bias", weighted_by_hand),
]


def apart(rule: Any, name: str, by_hand: ByHand, kind: str, loss_over: str) -> float:
    """How far, relatively, what the second task adds to the importance of the biases is from what a hand finds."""
    learner, context = second_task(rule, kind, loss_over)
    before = learner.method.rules[0].state().tensors.get(name, torch.zeros(2)).clone()
    data = context.task.data
    order = numpy_generator(0, "importance", 1).permutation(len(data))[:COUNT]
    scores = (
        learner.reading(None).with_data(data).passes.features(data)[order] @ context.model.trained()["head.weight"].T
    )
    scores = (scores + context.model.trained()["head.bias"]).detach()
    expected = by_hand(scores, torch.from_numpy(data.labels[order]), list(context.task.classes)).mean(dim=0)
    learner.end(context)
    found = learner.method.rules[0].state().tensors[name].clone()
    if "mas" in rule:
        found[: len(before)] -= before  # it adds up over tasks; the others forget here
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("kind", "loss_over"), STREAMS)
@pytest.mark.parametrize(("rule", "name", "by_hand"), RULES, ids=["ewc", "mas", "refresh"])
def test_importance_is_that_of_the_trained_likelihood(
    rule: Any, name: str, by_hand: ByHand, kind: str, loss_over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert apart(rule, name, by_hand, kind, loss_over) < 1e-4

    def all_compete(self: Model, tasks: Tensor) -> Tensor:
        return torch.ones(len(tasks), self.class_tasks.shape[1], dtype=torch.bool)

    ends = Learner.end

    def end(self: Learner, context: Context) -> None:
        with monkeypatch.context() as patch:  # the fault: importance leaves no class out, though the loss did
            patch.setattr(Model, "class_mask", all_compete)
            ends(self, context)

    monkeypatch.setattr(Learner, "end", end)
    assert apart(rule, name, by_hand, kind, loss_over) > 0.1
