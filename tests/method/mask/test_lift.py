"""LIFT: principal entries move and no other, by so many as a LoRA has, and the mask is renewed on time."""

from typing import Any, ClassVar, final

import pytest
import torch
from resume_helpers import difference_after_a_stop
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.adapter.weights.linear_layers import linear_layers
from contune.adapter.weights.subset import full
from contune.checks.run import SETTINGS, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.contract.parts import Rule, Tensors
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head.linear import Linear
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.numerics.masks import largest, lora_budget, low_rank
from contune.rule.mask.principal_mask import PrincipalMask
from contune.rule.project.gradient_projection import linear_modules
from contune.stream.task import Task

ADAMW = {**SETTINGS, "weight_decay": 0.1, "optimizer": "adamw"}
SGD = {**SETTINGS, "lr": 0.02, "weight_decay": 0.1, "optimizer": "sgd", "momentum": 0.9}
SMALL = {"rank": 3, "filter_rank": 2, "lr_scale": 1.0}


def model_of(case: str) -> str:
    return tiny_model() if case == "digits" else str(tiny_folder(case))


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def lift_learner(case: str = "digits", train: dict[str, Any] = ADAMW, **options: Any) -> Learner:
    return Learner(model_of(case), build_method("lift", {**SMALL, **options}), train=train)


def rule_of(learner: Learner) -> PrincipalMask:
    rule = learner.method.rules[0]
    assert isinstance(rule, PrincipalMask)
    return rule


def copies(context: Context) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in context.model.trained().items()}


@final
class GradientsOnly(Rule):
    """The planted fault: masks gradients and lets the optimizer do what it likes."""

    name: ClassVar[str] = "gradients-only"

    def __init__(self, inner: PrincipalMask) -> None:
        self.inner = inner

    def begin_task(self, context: Context) -> None:
        self.inner.begin_task(context)

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        return self.inner.gradients(context, gradients)


@pytest.mark.parametrize("case", ["digits", "bert", "gpt2"])
@pytest.mark.parametrize("train", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_only_principal_entries_move(case: str, train: dict[str, Any]) -> None:
    learner = lift_learner(case, train)
    for task in tasks_of(case)[:2]:
        context = learner.begin(task)
        before = copies(context)
        linear = set(linear_modules(context))
        masks = dict(rule_of(learner)._masks)
        assert set(masks) == linear
        for name, mask in masks.items():
            count = lora_budget(before[name].shape, 3)
            assert int(mask.sum()) == count < mask.numel()
            assert torch.equal(mask, largest(low_rank(before[name], 2).abs(), count))
        learner.fit(context, lambda report: None)
        after = copies(context)
        learner.end(context)
        for name, mask in masks.items():
            still = before[name] == after[name]
            assert bool(still[~mask].all()), "an entry outside the mask has moved"
            assert float(still[mask].float().mean()) < 0.05
        assert {name for name in before if name.startswith("adapter.")} == linear, "LIFT trains matrices alone"
        assert all(not torch.equal(after[name], before[name]) for name in before if name not in masks)


def test_masked_gradients_alone_leak() -> None:
    rule = PrincipalMask(rank=3, filter_rank=2)
    learner = Learner(tiny_model(), Method(full(lr_scale=1.0), Linear(), (GradientsOnly(rule),)), train=ADAMW)
    context = learner.begin(digit_tasks()[0])
    before = copies(context)
    learner.fit(context, lambda report: None)
    assert any(not torch.equal(before[n][~m], context.model.trained()[n].detach()[~m]) for n, m in rule._masks.items())


def test_the_mask_is_renewed_after_every_interval() -> None:
    learner = lift_learner(interval=4, train={**SGD, "lr": 0.2})
    context = learner.begin(digit_tasks()[0])
    found: list[dict[str, Tensor]] = [dict(rule_of(learner)._masks)]
    weights = [copies(context)]

    def note(report: Any) -> None:
        found.append(dict(rule_of(learner)._masks))
        weights.append(copies(context))

    learner.fit(context, note)
    changes = [
        step
        for step in range(1, len(found))
        if any(not torch.equal(m, found[step - 1][n]) for n, m in found[step].items())
    ]
    assert changes
    assert all(step % 4 == 0 for step in changes)
    for step in changes:
        for name, mask in found[step].items():
            assert torch.equal(mask, largest(low_rank(weights[step][name], 2).abs(), int(mask.sum())))
    for step in range(1, len(found)):
        for name, mask in found[step - 1].items():
            assert torch.equal(weights[step][name][~mask], weights[step - 1][name][~mask])


def test_an_equal_mask_changes_nothing() -> None:
    """Renewed after every step, where the budget is the whole matrix the masks are equal: the bits of one mask for all."""
    ends = []
    for interval in (1, 400):
        learner = lift_learner(rank=64, interval=interval)
        for task in digit_tasks()[:2]:
            learner.learn(task)
        ends.append(learner.state())
    assert same_state(*ends) is None


def test_with_whole_matrices_it_trains_them_freely() -> None:
    learner = lift_learner(rank=64, train={**SGD, "weight_decay": 0.0})
    plain = Learner(
        tiny_model(),
        Method(linear_layers(lr_scale=1.0), Linear()),
        train={**SGD, "weight_decay": 0.0},
    )
    for task in digit_tasks()[:2]:
        learner.learn(task)
        plain.learn(task)
    for name, value in plain.state().tensors.items():
        torch.testing.assert_close(learner.state().tensors[name], value, atol=1e-5, rtol=1e-5)


def test_choices_differ_and_have_one_size() -> None:
    masks = []
    for choice in ("low-rank", "magnitude", "random"):
        learner = lift_learner(choice=choice)
        learner.begin(digit_tasks()[0])
        masks.append(rule_of(learner)._masks)
    for name, mask in masks[0].items():
        assert len({int(each[name].sum()) for each in masks}) == 1
        assert not torch.equal(mask, masks[1][name])
        assert not torch.equal(masks[1][name], masks[2][name])


def test_entries_that_join_start_with_moments_of_zero() -> None:
    learner = lift_learner()
    context, kept = learner.begin(digit_tasks()[0]), []
    learner.fit(context, lambda report: kept.append(report.memory()))
    for name, mask in rule_of(learner)._masks.items():
        for key in ("exp_avg", "exp_avg_sq"):
            moments = kept[-1][f"{name}|{key}"]
            assert not bool(moments[~mask].any())
            assert bool(moments[mask].any())


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(CombinationError, match="trains matrices of the model itself"):
        compose({"adapter": "lora", "rules": ["principal-mask"]})
    with pytest.raises(ConfigError, match="at least 1"):
        PrincipalMask(filter_rank=0)


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_it_resumes_exactly_between_two_renewals(case: str) -> None:
    learner, again = lift_learner(case, interval=2), lift_learner(case, interval=2)
    assert difference_after_a_stop(learner, again, tasks_of(case), step=3) is None
