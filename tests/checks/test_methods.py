"""Every recipe that discovery finds passes the common checks, and each check catches the fault planted for it."""

import inspect
from collections.abc import Callable

import pytest
import torch
from goldens import assert_as_kept
from torch import nn

from contune.adapter.lora.peft_adapter import lora
from contune.adapter.none import NoAdapter
from contune.checks.common import CHECKS, NO_PEEKING, check_method, check_part, run_checks
from contune.checks.run import SETTINGS, checked_run, digit_tasks, tiny_model
from contune.contract.parts import Head, Router, Rule
from contune.contract.state import State
from contune.head.class_means import ClassMeans
from contune.head.linear import Linear
from contune.method.catalog import CATEGORIES, build_method, class_recipes, option_defaults, parts, recipes
from contune.method.method import Method


@pytest.mark.parametrize("name", class_recipes())
def test_method(name: str) -> None:
    trial = checked_run(lambda: build_method(name, {}))
    assert [f"{title}: {problem}" for title, problem in run_checks(name, trial) if problem] == []
    assert_as_kept(name, trial)


def untried_parts() -> list[tuple[str, str]]:
    """Parts that no recipe uses by default."""
    methods = [recipe() for recipe in recipes().values() if not missing_options(recipe)]
    used = {("adapter", m.adapter.name) for m in methods} | {("head", m.head.name) for m in methods}
    used |= {("rule", rule.name) for m in methods for rule in m.rules}
    used |= {("router", m.router.name) for m in methods if m.router is not None}
    return [(room, name) for room in CATEGORIES for name in parts(room) if (room, name) not in used]


def missing_options(make: Callable) -> list[str]:
    return [name for name, default in option_defaults(make).items() if default is inspect.Parameter.empty]


@pytest.mark.parametrize(("room", "name"), untried_parts())
def test_part(room: str, name: str) -> None:
    assert [f"{title}: {problem}" for title, problem in check_part(room, name) if problem] == []


class Faulty(Rule):
    """A rule with one planted fault."""

    name = "faulty"

    def __init__(self, **hooks: Callable) -> None:
        self.memory: list = []
        for hook, function in hooks.items():
            setattr(self, hook, function)


class FaultyHead(Head):
    """A linear head, until told otherwise."""

    name = "faulty-head"

    def __init__(self, scores: Callable) -> None:
        self.inner, self.scores, self.calls = Linear(), scores, 0

    def begin_task(self, context):
        self.inner.begin_task(context)

    def trained(self):
        return self.inner.trained()

    def training_logits(self, features):
        return self.inner.logits(features)

    def logits(self, features):
        self.calls += 1
        return self.scores(self, self.inner.logits(features))

    def state(self):
        return self.inner.state()

    def load_state(self, state, context):
        self.inner.load_state(state, context)


class Counting(FaultyHead):
    """Remembers that it was asked."""

    def state(self):
        return State(self.inner.state().tensors, {"calls": self.calls})


class Dead(FaultyHead):
    """Declares a tensor that no gradient reaches."""

    def trained(self):
        return {**self.inner.trained(), "dead": self.dead} if self.inner.trained() else {}

    dead = nn.Parameter(torch.zeros(1))


class Peeker(Rule):
    """Looks at the test data through a door that a careless caller left open."""

    name = "peeker"

    def begin_task(self, context):
        for task in self.tasks:
            list(task.test.inputs)

    tasks: tuple = ()


class Fixed(Head):
    """Never learns."""

    name = "fixed"
    closed_form = True

    def begin_task(self, context):
        self.seen = context.task.seen

    def logits(self, features):
        return torch.zeros(len(features), self.seen)

    def state(self):
        return State({}, {"seen": getattr(self, "seen", 0)})

    def load_state(self, state, context):
        self.seen = state.values["seen"]


class Touchy(Fixed):
    """Cannot stand a class with few examples."""

    closed_form = False

    def fit(self, context):
        torch.linalg.cholesky(torch.zeros(2, 2)) if len(context.task.data) < 10 else None


class Hoarder(Rule):
    """Keeps twice as much after every task."""

    name = "hoarder"

    def __init__(self) -> None:
        self.kept = torch.zeros(5000)

    def end_task(self, context):
        self.kept = torch.cat([self.kept, self.kept, self.kept])

    def state(self):
        return State({"kept": self.kept})

    def load_state(self, state, context):
        self.kept = state.tensors["kept"]


class Stubborn(Rule):
    """Forgets how many steps it has seen when it is saved."""

    name = "stubborn"

    def __init__(self) -> None:
        self.steps = 0

    def penalty(self, context):
        self.steps += 1
        return sum((p * 0.01 * self.steps).sum() for p in context.model.trained().values())


def base_weight(context):
    return next(iter(context.model.backbone.base_parameters().values()))


def meddle(context):
    base_weight(context).data.add_(1e-6)


def creep(context):
    next(p for n, p in context.model.backbone.model.named_parameters() if "lora_" not in n).data.mul_(1 + 1e-6)


class Leaky(Linear):
    """A linear head whose answers come from the task that the example is said to come from."""


def leaky_method() -> Method:
    from contune.adapter.prompt.prefix import Prefix

    class Oracle(Router):
        name = "oracle"

        def route(self, context, dataset):
            return torch.from_numpy(dataset.tasks) * 0

    class Modules(Prefix):
        name = "modules"

        def modules(self):
            return 1

        def routes(self, tasks):
            return tasks * 0

        def module_state(self, module):
            return None

        def encode(self, backbone, batch):
            features, penalty = super().encode(backbone, batch)
            return features * (1.0 - 2.0 * batch.tasks[:, None]), penalty

    return Method(Modules(length=2), Linear(), router=Oracle())


def lora_with(rule: Rule) -> Callable[[], Method]:
    return lambda: Method(lora(rank=2), Linear(), (rule,))


FAULTS: dict[str, Callable[[], Method]] = {
    "learns": lambda: Method(NoAdapter(), Fixed()),
    "leaves the base unchanged": lora_with(Faulty(end_task=meddle)),
    "is gone when absent": lora_with(Faulty(end_task=meddle)),
    "changes only what it declares": lora_with(Faulty(after_step=creep)),
    "has no dead tensor": lambda: Method(NoAdapter(), Dead(lambda head, scores: scores)),
    "resumes exactly": lambda: Method(NoAdapter(), Linear(), (Stubborn(),)),
    "answers each row on its own": lambda: Method(
        NoAdapter(), FaultyHead(lambda head, scores: scores - 1e9 * (scores - scores.mean(dim=0)))
    ),
    "changes nothing by answering": lambda: Method(NoAdapter(), Counting(lambda head, scores: scores)),
    "needs no task named": leaky_method,
    "takes classes in any order": lambda: Method(lora(), FaultyHead(lambda head, scores: -scores)),
    "survives degenerate tasks": lambda: Method(NoAdapter(), Touchy()),
    "keeps no more each time": lambda: Method(NoAdapter(), Linear(), (Hoarder(),)),
}


@pytest.mark.parametrize("title", CHECKS)
def test_each_check_catches_its_planted_fault(title: str) -> None:
    if title == "survives degenerate tasks":
        with pytest.raises(torch.linalg.LinAlgError):
            list(check_method(FAULTS[title]))
        return
    assert dict(check_method(FAULTS[title]))[title] is not None


def test_test_data_is_booby_trapped() -> None:
    from contune import trial

    seen = [trial.trapped(task) for task in digit_tasks()]
    peeker = Peeker()
    peeker.tasks = tuple(seen)
    assert dict(check_method(lora_with(peeker)))[NO_PEEKING] == "test inputs were read while a task was learned"


def test_a_sound_method_is_not_blamed() -> None:
    assert [f for f in check_method(lambda: Method(NoAdapter(), ClassMeans())) if f[1]] == []


def test_two_seeds_differ() -> None:
    from contune.engine.learner import Learner

    states: list[State] = []
    for seed in (0, 1):
        learner = Learner(tiny_model(), "lora", train={**SETTINGS, "seed": seed})
        learner.learn(digit_tasks()[0])
        states.append(learner.state())
    assert any(not torch.equal(t, states[1].tensors[n]) for n, t in states[0].tensors.items())
