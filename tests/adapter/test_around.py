"""Adapters around others: flags, abilities and hooks are the inner adapter's, unless the outer one says otherwise."""

from typing import Any, ClassVar, final

import pytest
import torch

from contune.adapter.around.ema import EmaAdapter
from contune.adapter.around.with_base import WithBase
from contune.adapter.bottleneck.merged import BottleneckMerged
from contune.adapter.lora.calibrated import CalibratedLora
from contune.adapter.lora.corda import Corda
from contune.adapter.lora.inflora_basis import InfloraBasis
from contune.adapter.lora.sd_lora import SdLora
from contune.adapter.weights.freezable import FreezableParameters
from contune.adapter.weights.half_fine_tuning import Half
from contune.adapter.weights.sparse_deltas import SparseDeltas
from contune.adapter.wrapper import Around
from contune.checks.run import checked_run, digit_tasks, new_learner, same_state
from contune.contract.capability import (
    BaseMatrices,
    Freezable,
    InputFactors,
    Lifetime,
    LinearWeights,
    MergedLater,
    Modules,
    TaskFactors,
    TaskModules,
    find,
)
from contune.contract.parts import Adapter
from contune.errors import CombinationError
from contune.head.linear import Linear
from contune.method.catalog import build_part, compose
from contune.method.method import Method

ABILITIES = (
    BaseMatrices, Freezable, InputFactors, LinearWeights, MergedLater, Modules, TaskFactors, TaskModules,
)  # fmt: skip
FLAGS = ("needs_traits", "needs_queries", "supports_packing", "lr_scale", "lifetime")
INNER = [
    "lora",
    "lora-per-task",
    "bottleneck",
    "prompt",
    "prompt-pool",
    "prompt-components",
    "none",
    "shared-attention",
]


@final
class Plain(Around):
    """Says nothing of its own."""

    name: ClassVar[str] = "plain"

    def __init__(self, inner: Adapter) -> None:
        super().__init__(inner)


@pytest.mark.parametrize("inner", INNER)
def test_flags_and_abilities_pass_through_a_wrapper_that_says_nothing(inner: str) -> None:
    bare = build_part("adapter", inner)
    outer = Plain(Plain(bare))
    assert [getattr(outer, flag) for flag in FLAGS] == [getattr(bare, flag) for flag in FLAGS]
    for ability in ABILITIES:
        assert find(outer, ability) is find(bare, ability)


@pytest.mark.parametrize("inner", INNER)
def test_with_base_has_the_flags_of_what_it_is_put_around_and_two_modules(inner: str) -> None:
    bare = build_part("adapter", inner)
    outer = WithBase(bare)
    assert [getattr(outer, flag) for flag in FLAGS] == [getattr(bare, flag) for flag in FLAGS]
    for ability in ABILITIES:
        assert find(outer, ability) is (outer if ability is Modules else find(bare, ability))


MADE: dict[type[Around], tuple[Any, dict[type, bool]]] = {
    WithBase: (
        lambda: WithBase(build_part("adapter", "lora")),
        {Modules: True, TaskModules: False, LinearWeights: True},
    ),
    EmaAdapter: (lambda: EmaAdapter(CalibratedLora(), 0.9), {Modules: True, TaskModules: False, LinearWeights: True}),
    FreezableParameters: (lambda: build_part("adapter", "freezable"), {Freezable: True, BaseMatrices: True}),
    Half: (Half, {Freezable: False, BaseMatrices: True}),
    SparseDeltas: (SparseDeltas, {MergedLater: True, BaseMatrices: True}),
    BottleneckMerged: (BottleneckMerged, {TaskModules: True, LinearWeights: False}),
    CalibratedLora: (CalibratedLora, {LinearWeights: True, BaseMatrices: False}),
    Corda: (Corda, {LinearWeights: True, TaskFactors: False, InputFactors: False}),
    InfloraBasis: (InfloraBasis, {LinearWeights: True, TaskFactors: True, InputFactors: False}),
    SdLora: (SdLora, {LinearWeights: True, TaskFactors: False, InputFactors: True}),
    Plain: (lambda: Plain(build_part("adapter", "lora")), {LinearWeights: True}),
}


def test_every_wrapper_is_tried() -> None:
    assert set(Around.__subclasses__()) == set(MADE)


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_each_wrapper_has_the_abilities_that_it_says(kind: type[Around]) -> None:
    make, expected = MADE[kind]
    outer = make()
    assert {ability: find(outer, ability) is not None for ability in expected} == expected


def test_what_a_wrapper_hides_is_refused_to_those_who_ask() -> None:
    with pytest.raises(CombinationError, match="half-fine-tuning"):
        compose({"adapter": "half-fine-tuning", "rules": ["lottery-ticket"]})
    assert compose({"adapter": "freezable", "rules": ["lottery-ticket"]}).adapter.name == "freezable"


@pytest.mark.parametrize("rule", ["ewc", "l2", "snapshot-mean", "average-gradient-memory", "gradient-projection"])
@pytest.mark.parametrize("inner", ["lora", "lora-per-task", "bottleneck"])
def test_with_base_is_refused_where_the_bare_adapter_is(inner: str, rule: str) -> None:
    def refused(adapter: Any) -> bool:
        try:
            compose({"adapter": adapter, "head": "linear", "rules": [rule]})
        except CombinationError:
            return True
        return False

    assert refused({"with-base": {"adapter": inner}}) == refused(inner)


def test_a_wrapper_that_dropped_the_lifetime_would_let_a_rule_protect_the_head_alone() -> None:
    outer = WithBase(build_part("adapter", "lora-per-task"))
    outer.lifetime = Lifetime.LASTING
    rule = build_part("rule", "ewc")
    learner = new_learner(Method(outer, Linear(), (rule,)))
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    trained = context.model.trained()
    held = torch.autograd.grad(rule.penalty(context), list(trained.values()), allow_unused=True)
    assert {name for name, gradient in zip(trained, held, strict=True) if gradient is not None} == {
        "head.weight",
        "head.bias",
    }


def test_with_base_learns_as_the_bare_adapter_does_to_the_bit() -> None:
    bare = checked_run(lambda: compose({"adapter": "lora", "rules": ["l2"]})).learner
    outer = checked_run(lambda: compose({"adapter": {"with-base": {"adapter": "lora"}}, "rules": ["l2"]})).learner
    assert same_state(bare.state().inner("adapter"), outer.state().inner("adapter").inner("inner")) is None
    assert same_state(bare.state().inner("rule0"), outer.state().inner("rule0")) is None
