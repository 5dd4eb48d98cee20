"""Rules act in the order of their phases: how they are listed makes no difference where the order counts."""

from itertools import permutations
from typing import Any

import pytest
import torch

from contune.checks.run import SETTINGS, digit_tasks, tiny_model
from contune.contract.parts import Phase, Rule
from contune.engine.learner import Learner
from contune.method.catalog import build_method, compose, parts, recipes

TRAIN = {**SETTINGS, "epochs": 2}
CASES: list[tuple[str, list[Any]]] = [
    ("lora", [{"ema": {"decay": 0.5}}, {"ewc": {"examples": 8}}, "freeze-first"]),
    ("lora", [{"snapshot-mean": {}}, {"l2": {"strength": 1.0}}]),
    ("lora", [{"ema-teacher": {"size": 8}}, {"activation-mask": {}}]),
    ("lora", [{"activation-mask": {}}, "distillation", {"compatible-ema": {}}]),
    ("lora", [{"alignment": {"epochs": 1, "samples": 8}}, {"ewc": {"examples": 8}}, {"adaptive-ema": {"share": 0.1}}]),
    ("full", [{"average-gradient-memory": {"size": 8}}, {"freeze-backbone-after": {"epochs": 1}}]),
]


def learned(adapter: str, rules: list[Any]) -> dict[str, torch.Tensor]:
    learner = Learner(tiny_model(), compose({"adapter": adapter, "rules": rules}), train=TRAIN)
    for task in digit_tasks():
        learner.learn(task)
    return dict(learner.state().tensors)


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    assert set(first) == set(second)
    return [name for name, value in first.items() if not torch.equal(value.nan_to_num(), second[name].nan_to_num())]


@pytest.mark.parametrize(("adapter", "rules"), CASES)
def test_the_order_in_which_rules_are_listed_makes_no_difference(adapter: str, rules: list[Any]) -> None:
    orders = list(permutations(rules))
    first = learned(adapter, rules)
    assert all(difference(first, learned(adapter, list(order))) == [] for order in orders[1:][-2:])


@pytest.mark.parametrize("case", [0, 1])
def test_without_phases_it_would(case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, rules = CASES[case]
    for cls in Rule.__subclasses__():
        monkeypatch.setattr(cls, "phase", Phase.PROTECTS)
    first, second = (
        {name: value for name, value in learned(adapter, order).items() if name.startswith(("adapter/", "head/"))}
        for order in (rules, rules[::-1])
    )
    assert difference(first, second)


def test_rules_are_kept_in_the_order_of_their_phases_and_else_as_listed() -> None:
    method = compose({"adapter": "lora", "rules": ["freeze-first", "l2", "alignment", "mas", "ema"]})
    assert [rule.name for rule in method.rules] == ["ema", "alignment", "l2", "mas", "freeze-first"]


def test_no_docstring_says_where_to_list_a_rule() -> None:
    assert [name for name, make in parts("rule").items() if "list it" in (make.__doc__ or "").lower()] == []


@pytest.mark.parametrize("name", recipes())
def test_recipes_list_their_rules_as_they_act(name: str) -> None:
    phases = [rule.phase for rule in build_method(name, {}).rules]
    assert phases == sorted(phases)
