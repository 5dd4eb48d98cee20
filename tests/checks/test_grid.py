"""The grid: every adapter with every head, rule and router either works or is refused with a sentence."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from slow_subset import ONE_IN, SHARES

from contune.checks.run import CheckRun, checked_run, copied, digit_tasks, same_state, tiny_model
from contune.contract.parts import Rule
from contune.engine.learner import Learner
from contune.errors import ContuneError
from contune.method.catalog import compose, parts
from contune.stream.task import Task

TRAIN = {"epochs": 1, "batch_size": 8, "lr": 5e-3, "schedule": "constant"}
MODULAR = "prefix-per-task"


def tiny_tasks() -> list[Task]:
    rows = [[*range(6), *range(24, 30)], [*range(4), *range(30, 40)]]
    return [
        Task(t.name, t.class_names, t.train.take(chosen), t.test.take(range(4)))
        for t, chosen in zip(digit_tasks()[:2], rows, strict=True)
    ]


def problem_of(config: dict[str, Any]) -> str | None:
    """What is wrong with a composition; a refusal before any compute is nothing wrong."""
    try:
        learner = Learner(tiny_model(), compose(config), train=TRAIN, device="cpu")
    except ContuneError as refusal:
        return None if len(str(refusal)) > 20 else f"refused without a sentence: {refusal}"
    first, second = tiny_tasks()
    experience: Any = first
    context = learner.begin(experience)
    before = {name: p.detach().clone() for name, p in context.model.trained().items()}
    base = {id(p) for p in learner.backbone.base_parameters().values()}
    trains_base = any(id(p) in base for p in context.model.trained().values())
    learner.fit(context, lambda report: None)
    dead = [n for n, v in before.items() if n in context.model.trained() and torch.equal(v, context.model.trained()[n])]
    learner.end(context)
    saved = copied(learner.state())
    learner.learn(second)
    again = Learner(tiny_model(), compose(config), train=TRAIN, device="cpu")
    again.load_state(saved)
    again.learn(second)
    if not trains_base and not learner.base_unchanged():
        return "the base has changed"
    if dead:
        return f"{dead[0]} has not moved"
    answers = learner.predict(list(first.test.inputs))
    if not set(answers) <= set(learner.class_names):
        return f"it answers {answers}"
    differs = same_state(learner.state(), again.state())
    return differs and f"after a resume {differs}"


def problems(configs: Iterator[dict[str, Any]]) -> list[str]:
    found = []
    for config in configs:
        try:
            problem = problem_of(config)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            found.append(f"{config}: {problem}")
    return found


def with_router(config: dict[str, Any], adapter: str) -> dict[str, Any]:
    """A modular adapter that no head takes side by side is given a router."""
    try:
        compose(config)
    except ContuneError as refusal:
        if "add a router" in str(refusal):
            return {**config, "router": "centroids"}
    return config


def share_of(met: str, part: str, room: str, share: int) -> list[str]:
    """One share of the parts of room `met`, from a place that moves with the part: by default each meets some others."""
    return [name for at, name in enumerate(parts(met)) if (at + list(parts(room)).index(part)) % ONE_IN == share]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("adapter", parts("adapter"))
def test_adapter_with_every_head(adapter: str, share: int) -> None:
    heads = share_of("head", adapter, "adapter", share)
    assert problems(with_router({"adapter": adapter, "head": head}, adapter) for head in heads) == []


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("adapter", parts("adapter"))
def test_adapter_with_every_rule(adapter: str, share: int) -> None:
    rules = share_of("rule", adapter, "adapter", share)
    configs = (with_router({"adapter": adapter, "head": "linear", "rules": [rule]}, adapter) for rule in rules)
    assert problems(configs) == []


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("head", parts("head"))
def test_head_with_every_rule(head: str, share: int) -> None:
    rules = share_of("rule", head, "head", share)
    configs = ({"adapter": "lora", "head": head, "rules": [rule]} for rule in rules)
    assert problems(configs) == []


def test_the_shares_together_are_all_pairs() -> None:
    for adapter in parts("adapter"):
        for met in ("rule", "head"):
            found = [name for share in range(ONE_IN) for name in share_of(met, adapter, "adapter", share)]
            assert sorted(found) == sorted(parts(met))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("router", parts("router"))
def test_router_with_every_adapter_and_head(router: str, share: int) -> None:
    modular = [name for name in parts("adapter") if takes_router(name, router)]
    assert modular
    met = [name for name in share_of("adapter", router, "router", share) if name in modular]
    heads = share_of("head", router, "router", share)
    assert problems({"adapter": name, "head": "linear", "router": router} for name in met) == []
    assert problems({"adapter": MODULAR, "head": head, "router": router} for head in heads) == []


def takes_router(adapter: str, router: str) -> bool:
    try:
        compose({"adapter": adapter, "router": router})
    except ContuneError:
        return False
    return True


IDLE = [(name, part.idle) for name, part in parts("rule").items() if getattr(part, "idle", None)]


@cache
def plain_trial(adapter: str) -> CheckRun:
    return checked_run(lambda: compose({"adapter": adapter, "head": "linear"}))


@pytest.mark.parametrize(("rule", "options"), IDLE, ids=[name for name, _ in IDLE])
def test_an_idle_rule_leaves_its_carrier_as_it_is_to_the_bit(rule: str, options: dict[str, Any]) -> None:
    per_task = rule in ("orthogonality", "overlap-penalty", "key-element-penalty")
    carrier = {"adapter": "lora-per-task" if per_task else "lora", "head": "linear"}
    plain = plain_trial(carrier["adapter"]).learner
    idle = checked_run(lambda: compose({**carrier, "rules": [{rule: dict(options)}]})).learner
    for part in ("adapter", "head"):
        assert same_state(plain.state().inner(part), idle.state().inner(part)) is None


def test_rules_that_can_be_idle_say_so() -> None:
    assert {"l2", "ewc", "mas", "distillation", "orthogonality"} <= {name for name, _ in IDLE}


class Careless(Rule):
    """A planted fault: a rule that forgets what it learned."""

    name = "careless"

    def __init__(self) -> None:
        self.seen = 0.0

    def end_task(self, context):
        self.seen += 1.0

    def penalty(self, context):
        return self.seen * sum(p.square().sum() for p in context.model.trained().values())


def test_the_grid_catches_a_faulty_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from contune.method import catalog

    known = dict(catalog.parts("rule"))
    monkeypatch.setattr(
        catalog, "parts", lambda room: {**known, "careless": Careless} if room == "rule" else parts(room)
    )
    found = problem_of({"adapter": "lora", "head": "linear", "rules": ["careless"]})
    assert found is not None
    assert found.startswith("after a resume")
