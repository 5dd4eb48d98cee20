"""C-LoRA: the penalty by hand, of the right LoRAs, and what it keeps in place."""

from typing import Any

import pytest
import torch
from resume_helpers import difference_after_a_stop
from torch import Tensor
from word_tasks import ENCODERS, tiny_folder, word_tasks

from contune.adapter.lora.per_task import LoraPerTask
from contune.backbone.targets import key_value_targets
from contune.checks.run import SETTINGS, digit_tasks, same_state, tiny_model
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.errors import CombinationError
from contune.head.linear import Linear
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.rule.anchor.overlap_penalty import OverlapPenalty, interference
from contune.stream.task import Task

RATE = {**SETTINGS, "lr": 0.02}


def model_of(case: str) -> str:
    return tiny_model() if case == "digits" else str(tiny_folder(case))


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def c_lora_learner(case: str = "digits", **options: Any) -> Learner:
    return Learner(model_of(case), build_method("c-lora", {"rank": 4, **options}), train=RATE)


def adapter_of(learner: Learner) -> LoraPerTask:
    adapter = learner.method.adapter
    assert isinstance(adapter, LoraPerTask)
    return adapter


def updates(learner: Learner, *, finished: bool) -> dict[str, Tensor]:
    return {n: (b @ a).detach() for n, (a, b) in adapter_of(learner).factors(finished=finished).items()}


def test_interference_by_hand() -> None:
    a_old, b_old = torch.tensor([[1.0, -2.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    a, b = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0], [-1.0]])
    # old: [[1, -1], [0, 3]], new: [[2, 1], [-2, -1]]; products [[2, -1], [0, -3]]
    pair = ((a_old, b_old), (a, b))
    assert interference([pair]).item() == 4 + 1 + 9
    assert interference([pair, pair]).item() == 28


def test_old_updates_cancel_before_the_absolute_value() -> None:
    a_old, b_old = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, -1.0]])
    assert interference([((a_old, b_old), (torch.ones(1, 1), torch.ones(1, 1)))]).item() == 0


@pytest.mark.parametrize("case", ["digits", "bert"])
@pytest.mark.parametrize("alpha", [4.0, 8.0])
def test_the_penalty_is_that_of_the_weights(case: str, alpha: float) -> None:
    adapter = LoraPerTask(rank=4, alpha=alpha, targets=key_value_targets("key-value"))
    rule = OverlapPenalty(strength=3.0)
    learner = Learner(model_of(case), Method(adapter, Linear(), (rule,)), train=RATE)
    first, second, third = tasks_of(case)
    assert rule.penalty(learner.begin(first)) is None
    learner = Learner(
        model_of(case), Method(LoraPerTask(rank=4, alpha=alpha, targets=adapter.targets), Linear(), (rule,))
    )
    for task in (first, second):
        learner.learn(task)
    context = learner.begin(third)
    penalty = rule.penalty(context)
    assert penalty is not None
    assert penalty.item() == 0  # B starts at zero
    for _, b in adapter_of(learner).factors().values():
        torch.nn.init.normal_(b, generator=torch.Generator().manual_seed(0))
    scale = alpha / 4
    old, new = (updates(learner, finished=finished) for finished in (True, False))
    expected = 3.0 * sum(float(((scale * old[n]).abs() * scale * new[n]).square().sum()) for n in old)
    penalty = rule.penalty(context)
    assert penalty is not None
    assert penalty.item() == pytest.approx(expected, rel=1e-4)
    assert expected > 0
    gradients = torch.autograd.grad(penalty, list(adapter_of(learner).trained().values()))
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
    assert not any(p.requires_grad for pair in adapter_of(learner).factors(finished=True).values() for p in pair)


def test_the_factors_are_those_of_the_forward_pass() -> None:
    """Old factors are all A below one another and all B side by side, in the order of tasks."""
    learner, seen = c_lora_learner(), []
    for task in digit_tasks():
        learner.learn(task)
        seen.append(
            {n: (a.detach().clone(), b.detach().clone()) for n, (a, b) in adapter_of(learner).factors().items()}
        )
    learner.begin(digit_tasks()[0])
    for name, (a, b) in adapter_of(learner).factors(finished=True).items():
        assert torch.equal(a, torch.cat([each[name][0] for each in seen]))
        assert torch.equal(b, torch.cat([each[name][1] for each in seen], dim=1))
    finished = adapter_of(learner).factors(finished=True)
    pairs = adapter_of(learner).pairs()
    assert all(torch.equal(a, finished[name][0]) for (a, _), name in zip(pairs, finished, strict=True))


def test_it_wraps_keys_and_values_of_every_encoder() -> None:
    for name in ENCODERS:
        learner = c_lora_learner(name)
        places = adapter_of(learner).places()
        assert len(places) == (3 if name == "modernbert" else 6)
        assert not any(place.endswith(("query", "q_proj", "q_lin")) for place in places)


def test_no_strength_is_lora_per_task_to_the_bit() -> None:
    ruled = c_lora_learner(strength=0.0)
    adapter = LoraPerTask(rank=4, alpha=4, targets=key_value_targets("key-value"))
    plain = Learner(tiny_model(), Method(adapter, Linear(loss_over="own-task")), train=RATE)
    for task in digit_tasks():
        ruled.learn(task)
        plain.learn(task)
    states = [State({n: t for n, t in x.state().tensors.items() if not n.startswith("rule")}) for x in (ruled, plain)]
    assert same_state(*states) is None


def test_strength_keeps_new_updates_where_old_ones_are_small() -> None:
    overlaps = []
    for strength in (0.0, 1e6):
        learner = c_lora_learner(strength=strength)
        learner.learn(digit_tasks()[0])
        learner.learn(digit_tasks()[1])
        old, new = (updates(learner, finished=finished) for finished in (True, False))
        size = sum(float(new[n].square().sum()) for n in new)
        assert size > 0
        overlaps.append(sum(float((old[n] * new[n]).square().sum()) for n in new) / size)
    assert overlaps[1] < 0.5 * overlaps[0]


def test_other_adapters_are_refused_with_a_sentence() -> None:
    with pytest.raises(CombinationError, match="lora-per-task"):
        compose({"adapter": "lora", "rules": ["overlap-penalty"]})


def test_texts_resume_exactly() -> None:
    learner, again = c_lora_learner("bert"), c_lora_learner("bert")
    assert difference_after_a_stop(learner, again, tasks_of("bert")) is None
