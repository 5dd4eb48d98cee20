"""Whether a refusal is true: the refused parts put together all the same, and what then goes wrong."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from contune.checks.run import digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.contract.data import Batch, Dataset, Outputs
from contune.contract.parts import Router, Rule, Tensors
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.method import method as method_module
from contune.method.catalog import compose, parts
from contune.method.method import Method
from contune.numerics.subspaces import Subspace
from contune.rule.project.cuber import Cuber
from contune.rule.project.gradient_projection import GradientProjection
from contune.stream.task import Task

TRAIN = {"epochs": 1, "batch_size": 8, "lr": 5e-3, "schedule": "constant"}
ADAPTER = "adapter."


def three_tasks() -> list[Task]:
    rows = [*range(6), *range(24, 30)]
    return [Task(t.name, t.class_names, t.train.take(rows), t.test.take(range(4))) for t in digit_tasks()]


@contextmanager
def nothing_refused() -> Iterator[None]:
    """The block composes whatever it is told to: neither needs nor a rule's own refusal count."""
    parts("rule")  # so that all of them are there to be silenced
    own = {cls: cls.refuses for cls in Rule.__subclasses__() if "refuses" in cls.__dict__}
    with mock.patch.object(method_module, "refusal", return_value=None):
        for cls in own:
            cls.refuses = lambda *_: None  # type: ignore[method-assign]
        try:
            yield
        finally:
            for cls, refuses in own.items():
                cls.refuses = refuses  # type: ignore[method-assign]


class Reaching(Rule):
    """A rule that does as `inner` does, and notes which tensors of the adapter `inner` acted on after the first task."""

    def __init__(self, inner: Rule) -> None:
        self.inner = inner
        self.name, self.phase = inner.name, inner.phase  # type: ignore[misc]
        self.reached: set[str] = set()

    def _note(self, context: Context, names: Any) -> None:
        if context.task.index:
            self.reached |= {name for name in names if name.startswith(ADAPTER)}

    def _rewriting(self, context: Context, hook: Any, *args: Any) -> None:
        before = {name: value.detach().clone() for name, value in context.model.trained().items()}
        hook(context, *args)
        now = context.model.trained()
        self._note(context, [name for name in before if name not in now or not torch.equal(before[name], now[name])])

    def _pulling(self, context: Context, term: Tensor | None) -> Tensor | None:
        if term is not None and term.requires_grad:
            trained = context.model.trained()
            found = torch.autograd.grad(term, list(trained.values()), retain_graph=True, allow_unused=True)
            self._note(context, [n for n, g in zip(trained, found, strict=True) if g is not None and bool(g.any())])
        return term

    def _changing(self, context: Context, before: Tensors, after: Tensors) -> Tensors:
        self._note(context, [n for n, v in before.items() if n not in after or not torch.equal(v, after[n])])
        return after

    def begin_task(self, context: Context) -> None:
        self._rewriting(context, self.inner.begin_task)

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Any]:
        found = self.inner.select(context, epoch, step)
        self._note(context, context.model.trained() if found else ())
        return found

    def loss(self, context: Context, batch: Batch, outputs: Outputs) -> Tensor | None:
        return self._pulling(context, self.inner.loss(context, batch, outputs))

    def penalty(self, context: Context) -> Tensor | None:
        return self._pulling(context, self.inner.penalty(context))

    def before_step(self, context: Context, batch: Batch | None) -> None:
        self._rewriting(context, self.inner.before_step, batch)

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        return self._changing(context, gradients, self.inner.gradients(context, gradients))

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        return self._changing(context, updates, self.inner.updates(context, updates))

    def after_step(self, context: Context) -> None:
        self._rewriting(context, self.inner.after_step)

    def end_task(self, context: Context) -> None:
        self._rewriting(context, self.inner.end_task)

    def state(self) -> State:
        return self.inner.state()

    def load_state(self, state: State, context: Context) -> None:
        self.inner.load_state(state, context)


@contextmanager
def asked(router: Router | None) -> Iterator[list[int]]:
    """While the block runs, how many examples each question to the router was about."""
    times: list[int] = []
    if router is None:
        yield times
        return
    route = router.route

    def noted(context: Context, dataset: Dataset) -> Tensor:
        times.append(len(dataset))
        return route(context, dataset)

    with mock.patch.object(router, "route", noted):
        yield times


def promised(rule: Rule | None) -> dict[str, Subspace]:
    """The input subspaces that a projecting rule protects in the task that has begun, by trained weight."""
    if isinstance(rule, GradientProjection):
        spaces = {name: rule._memory.space(name) for name in rule._memory.leaders}
        return {name: space for name, space in spaces.items() if space is not None}
    return dict(rule._protected) if isinstance(rule, Cuber) else {}


def broken_promise(rule: Rule | None, spaces: Mapping[str, Subspace], before: Tensors, now: Tensors) -> str | None:
    """The fact of a projecting rule: what a task changed in a weight is orthogonal to the inputs that are protected."""
    for name, space in spaces.items():
        own = name.removeprefix(ADAPTER)
        if own in before:
            assert isinstance(rule, GradientProjection | Cuber)
            change = (now[own] - before[own]).double()
            inside = float(((change.T if name in rule._transposed else change) @ space.basis()).abs().max())
            if inside > 1e-5:
                return f"{name} has moved by {inside:.1e} where old inputs reach"
    return None


def learned_three(learner: Learner, rule: Rule | None) -> str | None:
    """What is wrong while three tasks are learned: tensors that are new in a task and never move, or a broken promise."""
    seen: set[str] = set()
    for task in three_tasks():
        weights = {n: p.detach().clone() for n, p in learner.backbone.base_parameters().items()}
        context = learner.begin(task)
        spaces = promised(rule)
        before = {name: value.detach().clone() for name, value in context.model.trained().items()}
        learner.fit(context, lambda report: None)
        trained = context.model.trained()
        still = [n for n, v in before.items() if n not in seen and n in trained and torch.equal(v, trained[n])]
        if still:
            return f"{still[0]} is trained for the first time and has not moved"
        seen |= set(before)
        learner.end(context)
        now = {name: value.detach() for name, value in learner.backbone.base_parameters().items()}
        if problem := broken_promise(rule, spaces, weights, now):
            return problem
    return None


def what_goes_wrong(config: dict[str, Any]) -> str | None:
    """What is wrong with parts that refuse one another, once they are put together; None means that the refusal is false."""
    with nothing_refused():
        method, fresh = compose(config), compose(config)
        rule = method.rules[0] if method.rules else None
        watched = None if rule is None else Reaching(rule)
        rules = () if watched is None else (watched,)
        made = Method(method.adapter, method.head, rules, method.router, method.adapt)
        try:
            learner = Learner(tiny_model(), made, train=TRAIN, device="cpu")
            if problem := learned_three(learner, rule):
                return problem
            with asked(method.router) as times:
                answers = learner.predict(list(three_tasks()[0].test.inputs))
            again = Learner(tiny_model(), fresh, train=TRAIN, device="cpu")
            again.load_state(learner.state())
        except Exception as error:  # whatever it is: parts that fit raise nothing
            return f"{type(error).__name__}: {error}"
    if not set(answers) <= set(learner.class_names):
        return f"it answers {answers}"
    if same_state(learner.state(), again.state()):
        return "what it remembers does not come back"
    if method.router is not None and not times:
        return "the router is never asked"
    if watched is not None and not watched.reached:
        return "the rule acts on nothing that the adapter trains"
    return None
