"""Refusals are true: what is refused goes wrong where nobody refuses it, and whoever has an ability says so."""

from typing import Any, ClassVar

import pytest
from refusals import what_goes_wrong
from slow_subset import ONE_IN, SHARES

from contune.backbone.linear import linear_layers
from contune.checks.run import digit_tasks, new_learner
from contune.contract.capability import BaseMatrices, InputFactors, LinearWeights, Need, TaskFactors, find
from contune.contract.parts import Rule
from contune.errors import CombinationError, ContuneError
from contune.head.linear import Linear
from contune.method import catalog
from contune.method.catalog import compose, parts
from contune.method.method import Method

ADAPTERS = parts("adapter")


def refused(config: dict[str, Any]) -> str | None:
    """Why the parts refuse one another, where a part's own needs or words are the reason."""
    try:
        compose(config)
    except CombinationError as refusal:
        return None if "add a router" in str(refusal) or "keeps sums" in str(refusal) else str(refusal)
    return None


def false_refusals(configs: list[dict[str, Any]]) -> list[str]:
    return [f"{each}: {refused(each)}" for each in configs if refused(each) and what_goes_wrong(each) is None]


def share_of(met: str, adapter: str, share: int) -> list[str]:
    at = list(ADAPTERS).index(adapter)
    return [name for number, name in enumerate(parts(met)) if (number + at) % ONE_IN == share]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_a_rule_refuses_goes_wrong(adapter: str, share: int) -> None:
    rules = share_of("rule", adapter, share)
    assert false_refusals([{"adapter": adapter, "head": "linear", "rules": [rule]} for rule in rules]) == []


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_a_head_or_a_router_refuses_goes_wrong(adapter: str, share: int) -> None:
    heads = [{"adapter": adapter, "head": head} for head in share_of("head", adapter, share)]
    routers = [{"adapter": adapter, "router": router} for router in share_of("router", adapter, share)]
    assert false_refusals([*heads, *routers]) == []


class Shy(Rule):
    """A planted fault: it would do with every adapter, and says that it does not."""

    name = "shy"

    def penalty(self, context):
        return 0.01 * sum(value.square().sum() for value in context.model.trained().values())

    def refuses(self, adapter, head):
        return f"rule 'shy' does not care for adapter {adapter.name!r}"


class Greedy(Rule):
    """A planted fault: it asks for an ability that it makes no use of."""

    name = "greedy"
    needs: ClassVar[tuple[Need, ...]] = (TaskFactors,)
    penalty = Shy.penalty


@pytest.mark.parametrize("rule", [Shy, Greedy])
def test_a_false_refusal_is_caught(rule: type[Rule], monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**parts("rule"), rule.name: rule}
    monkeypatch.setattr(catalog, "parts", lambda room: known if room == "rule" else parts(room))
    (found,) = false_refusals([{"adapter": "lora", "head": "linear", "rules": [rule.name]}])
    assert rule.name in found


DENSE_IN_FORM_ONLY = {"peft": "DoRA feeds its factors' layers an identity matrix too, not the layer's inputs alone"}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_who_trains_weights_of_linear_layers_says_so(adapter: str) -> None:
    learner = new_learner(Method(compose({"adapter": adapter, "router": router_for(adapter)}).adapter, Linear()))
    learner.learn(digit_tasks()[0])
    learner.begin(digit_tasks()[1])
    own = learner.method.adapter
    trains = linear_layers(learner.backbone.model, own.trained())
    base = {id(value) for value in learner.backbone.base_parameters().values()}
    linear, matrices = find(own, LinearWeights), find(own, BaseMatrices)
    if adapter in DENSE_IN_FORM_ONLY:
        assert trains
        assert linear is None
        return
    assert ({} if linear is None else dict(linear.linear())) == trains
    assert (linear is not None) == bool(trains)
    assert (matrices is not None) == any(id(module.weight) in base for module in trains.values())
    if matrices is not None and matrices.matrices_only:
        assert set(own.trained()) == set(trains)


def router_for(adapter: str) -> str | None:
    try:
        compose({"adapter": adapter})
    except ContuneError as refusal:
        return "centroids" if "add a router" in str(refusal) else None
    return None


@pytest.mark.parametrize("adapter", ["lora-per-task", "inflora-basis", "sd-lora"])
def test_factors_of_a_task_are_those_that_it_trains(adapter: str) -> None:
    learner = new_learner(compose({"adapter": adapter}))
    learner.learn(digit_tasks()[0])
    learner.begin(digit_tasks()[1])
    own = learner.method.adapter
    trained = {id(value) for value in own.trained().values()}
    factors, pairs = find(own, TaskFactors), find(own, InputFactors)
    assert factors is not None or pairs is not None
    if factors is not None:
        assert all(id(up) in trained for _, up in factors.factors().values())
        assert not any(id(up) in trained for _, up in factors.factors(finished=True).values())
    if pairs is not None:
        assert all(id(new) in trained and not past.requires_grad for past, new in pairs.pairs())


def test_a_refusal_names_parts_that_do() -> None:
    with pytest.raises(CombinationError) as refusal:
        compose({"adapter": "prompt", "rules": ["gradient-projection"]})
    sentence, _, named = str(refusal.value).partition("; set adapter: ")
    assert "trains weights of linear layers" in sentence
    for name in named.split(" or "):
        assert compose({"adapter": name, "rules": ["gradient-projection"]}).adapter.name == name
