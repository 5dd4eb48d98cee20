"""Every recipe that discovery finds passes the common checks, and each check catches the fault planted for it."""

import inspect
from collections.abc import Callable
from functools import partial

import pytest
import torch
from goldens import assert_as_kept, kept_settings
from slow_subset import only
from torch import nn
from typer.testing import CliRunner

from contune.adapter.lora.peft_adapter import lora
from contune.adapter.none import NoAdapter
from contune.adapter.prompt.components import PromptComponents
from contune.checks.common import CHECKS, NO_PEEKING, check_method
from contune.checks.named import check_part, named_checks, run_checks
from contune.checks.run import SETTINGS, CheckFailed, checked_run, digit_tasks, tiny_model, trapped
from contune.checks.setting import settings
from contune.checks.sizes import checked_method
from contune.cli import app
from contune.contract.parts import Head, Router, Rule
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.errors import ConfigError
from contune.head.linear import Linear
from contune.head.solved.class_means import ClassMeans
from contune.method.catalog import CATEGORIES, accepts, build_method, class_recipes, option_defaults, parts, recipes
from contune.method.method import Method


@pytest.mark.parametrize("name", class_recipes())
def test_method(name: str) -> None:
    trial = checked_run(lambda: checked_method(name))
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


BESIDE_IMAGES = [
    *((name, setting) for name, setting in kept_settings() if setting == "answers"),
    *((name, "texts") for name in class_recipes()),
    *((name, kind) for kind in ("multi-label", "tag", "regress") for name in recipes() if accepts(name, kind)),
]
BY_DEFAULT = [  # and lfpt5, through the command line
    ("coda-prompt", "answers"),
    ("l2p", "texts"),
    ("er", "multi-label"),
    ("lwf", "tag"),
    ("ranpac", "regress"),
]


@pytest.mark.parametrize(("name", "kind"), only(BY_DEFAULT, BESIDE_IMAGES))
def test_method_beside_images(name: str, kind: str) -> None:
    found = run_checks(name, setting=settings()[kind])
    assert [f"{title}: {problem}" for title, problem in found if problem] == []


@pytest.mark.parametrize("title", ["learns", "resumes exactly"])
def test_checks_of_written_answers_catch_their_planted_faults(title: str) -> None:
    faults = {"learns": lambda: Method(NoAdapter(), Linear()), "resumes exactly": lora_with(Stubborn())}
    assert blamed(title, faults[title], "answers") is not None


def test_check_goes_where_a_recipe_is_accepted() -> None:
    done = CliRunner().invoke(app, ["check", "lfpt5"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "ok   answers: resumes exactly" in lines
    refused = [line.split(":")[0].strip() for line in lines if not line.startswith("ok")]
    assert refused == ["images", "multi-label", "regress", "tag", "texts"]
    assert not any(line.startswith("ok   images") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lfpt5", "--on", "images"], "cannot be checked on images: 'pseudo-replay' needs"),
        (["linear-probe", "--on", "answers"], "nothing of it would be trained"),
        (["lora", "--on", "sounds"], "answers, images, multi-label, regress, tag, texts, or all"),
        (["lorra"], "did you mean"),
        (["rule:nothing"], "is unknown"),
    ],
)
def test_check_refuses_with_a_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        list(named_checks(arguments[0], *arguments[2:]))


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


class PartlyDeaf(FaultyHead):
    """Trains three values, of which the last takes part in a penalty and in no answer."""

    def __init__(self, scores: Callable) -> None:
        super().__init__(scores)
        self.extra = nn.Parameter(torch.ones(2, 3))

    def trained(self):
        return {**self.inner.trained(), "extra": self.extra} if self.inner.trained() else {}

    def training_logits(self, features):
        silent = self.extra[:, 2].square().sum()
        return self.inner.logits(features) * self.extra[:, :2].mean() + 0.0 * silent

    def logits(self, features):
        return self.training_logits(features)

    def state(self):
        return State({**self.inner.state().tensors, "extra": self.extra.detach()}, self.inner.state().values)

    def load_state(self, state, context):
        self.inner.load_state(State({n: t for n, t in state.tensors.items() if n != "extra"}, state.values), context)
        self.extra = nn.Parameter(state.tensors["extra"].clone())


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
    "takes tasks in any order": lambda: Method(lora(), FaultyHead(lambda head, scores: -scores)),
    "survives degenerate tasks": lambda: Method(NoAdapter(), Touchy()),
    "keeps no more each time": lambda: Method(NoAdapter(), Linear(), (Hoarder(),)),
    "trains nothing that cannot act": lambda: Method(NoAdapter(), PartlyDeaf(lambda head, scores: scores)),
}


def blamed(title: str, make: Callable[[], Method], kind: str = "images") -> str | None:
    """What one check says of a method."""
    try:
        CHECKS[title](make, checked_run(make, settings()[kind]))
    except CheckFailed as problem:
        return str(problem)
    return None


@pytest.mark.parametrize("title", FAULTS)
def test_each_check_catches_its_planted_fault(title: str) -> None:
    if title == "survives degenerate tasks":
        with pytest.raises(torch.linalg.LinAlgError):
            blamed(title, FAULTS[title])
        return
    assert blamed(title, FAULTS[title]) is not None


def test_every_check_has_a_planted_fault() -> None:
    assert FAULTS.keys() | {"measures what it answers"} == CHECKS.keys()


def test_a_run_that_asks_another_module_than_predict_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: a run measures every task through the first module."""
    make = partial(build_method, "conpet-dynamic", {})
    trial = checked_run(make)
    check = CHECKS["measures what it answers"]
    check(make, trial)
    ready = Learner.test_dataset
    monkeypatch.setattr(Learner, "test_dataset", lambda self, task, index: ready(self, task, index and 0))
    with pytest.raises(CheckFailed, match="in a task-incremental stream"):
        check(make, trial)


def test_prompts_of_odd_length_would_have_rows_that_cannot_act() -> None:
    """What CODA-Prompt refuses: with the old halves, the last row of a prompt of odd length was never read."""
    for length in (1, 3):
        with pytest.raises(ConfigError, match="half of a prompt's rows are keys"):
            PromptComponents(length=length)


def test_test_data_is_booby_trapped() -> None:
    seen = [trapped(task) for task in digit_tasks()]
    peeker = Peeker()
    peeker.tasks = tuple(seen)
    assert dict(check_method(lora_with(peeker)))[NO_PEEKING] == "test inputs were read while a task was learned"


def test_a_sound_method_is_not_blamed() -> None:
    assert [f for f in check_method(lambda: Method(NoAdapter(), ClassMeans())) if f[1]] == []


def test_two_seeds_differ() -> None:
    states: list[State] = []
    for seed in (0, 1):
        learner = Learner(tiny_model(), "lora", train={**SETTINGS, "seed": seed})
        learner.learn(digit_tasks()[0])
        states.append(learner.state())
    assert any(not torch.equal(t, states[1].tensors[n]) for n, t in states[0].tensors.items())
