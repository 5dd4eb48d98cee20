"""Every recipe that discovery finds passes the common checks, and planted faults are caught."""

import pytest
import torch

from contune.adapter.none import NoAdapter
from contune.adapter.peft_adapter import lora
from contune.checks import CHECKS, CheckFailed, check_base_unchanged, check_exact_resume
from contune.contract.parts import Rule
from contune.contract.state import State
from contune.head.linear import Linear
from contune.method.catalog import build_method, recipes
from contune.method.method import Method


@pytest.mark.parametrize("name", recipes())
@pytest.mark.parametrize("title", CHECKS)
def test_method(name: str, title: str) -> None:
    CHECKS[title](lambda: build_method(name, {}))


class Forgetful(Rule):
    """A planted fault: remembers something that its state leaves out."""

    name = "forgetful"

    def __init__(self) -> None:
        self.steps = 0

    def penalty(self, context):
        self.steps += 1
        return sum((p * 0.01 * self.steps).sum() for p in context.trained().values())


class Meddler(Rule):
    """A planted fault: trains a base weight."""

    name = "meddler"

    def end_task(self, context):
        next(iter(context.backbone.base_parameters().values())).data.add_(1e-6)


def test_hidden_state_is_caught() -> None:
    with pytest.raises(CheckFailed, match="after resuming"):
        check_exact_resume(lambda: Method(NoAdapter(), Linear(), (Forgetful(),)))


def test_a_touched_base_is_caught() -> None:
    with pytest.raises(CheckFailed, match="base weights"):
        check_base_unchanged(lambda: Method(lora(rank=2), Linear(), (Meddler(),)))


def test_two_seeds_differ() -> None:
    from contune.checks import SETTINGS, digit_tasks, tiny_model
    from contune.engine.learner import Learner

    states: list[State] = []
    for seed in (0, 1):
        learner = Learner(tiny_model(), "lora", train={**SETTINGS, "seed": seed})
        learner.learn(digit_tasks()[0])
        states.append(learner.state())
    assert any(not torch.equal(t, states[1].tensors[n]) for n, t in states[0].tensors.items())
