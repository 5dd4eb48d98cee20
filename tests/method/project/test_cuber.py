"""CUBER: regimes by hand, steps off protected inputs, GPM where nothing agrees, and old tasks that gain where one does."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from word_tasks import tiny_folder, word_tasks

from contune.adapter.weights.subset import full
from contune.checks.run import SETTINGS, copied, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head.linear import Linear
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.numerics.subspaces import Subspace, complement, project_out
from contune.rule.project.cuber import Cuber, joined_spaces, mean_gradients, regime
from contune.rule.project.gradient_projection import GradientProjection
from contune.stream.task import Task

ADAMW = {**SETTINGS, "lr": 2e-3, "weight_decay": 0.1}
NOTHING_AGREES: dict[str, Any] = {"overlap": 0.0, "agreement": 1.0}


def model_of(case: str) -> str:
    return tiny_model() if case == "digits" else str(tiny_folder(case))


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def cuber_learner(case: str = "digits", train: dict[str, Any] = ADAMW, **options: Any) -> Learner:
    return Learner(model_of(case), build_method("cuber", {"lr_scale": 1.0, **options}), train=train, device="cpu")


def gpm_learner(case: str = "digits") -> Learner:
    method = Method(full(lr_scale=1.0), Linear(loss_over="own-task"), (GradientProjection(),))
    return Learner(model_of(case), method, train=ADAMW, device="cpu")


def rule_of(learner: Learner) -> Cuber:
    (rule,) = learner.method.rules
    assert isinstance(rule, Cuber)
    return rule


def values_of(context: Context) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in context.model.trained().items()}


def random_space(width: int, size: int, seed: int) -> Subspace:
    rows = torch.randn(width, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Subspace(torch.linalg.qr(rows)[0].float(), "remove")


def projector(space: Subspace) -> Tensor:
    basis = space.basis()
    return basis @ basis.T


def leak(learner: Learner, name: str, change: Tensor, task: int) -> float:
    """The largest |dW U_j| of one weight."""
    rule = rule_of(learner)
    space = rule._inputs[task].space(name)
    assert space is not None
    return float((rule._rows(name, change).double() @ space.basis()).abs().max())


def learn_third(learner: Learner, case: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Learn all three tasks; how the third moved every weight, and the regimes it met."""
    first, second, third = tasks_of(case)
    learner.learn(first)
    learner.learn(second)
    context = learner.begin(third)
    before, regimes = values_of(context), [dict(found) for found in rule_of(learner)._regimes]
    learner.fit(context, lambda report: None)
    after = values_of(context)
    return {name: after[name] - before[name] for name in regimes[0]}, regimes


def test_regimes_by_hand() -> None:
    space = Subspace(torch.eye(3)[:, :2], "remove")
    old = torch.tensor([[1.0, 0.0, 0.0]])

    def met(rows: list[list[float]], overlap: float, agreement: float, earlier: Tensor = old) -> str:
        return regime(torch.tensor(rows), earlier, space, overlap=overlap, agreement=agreement)

    # inside the space: norm 5 of 13, a share of 0.3846
    assert met([[3.0, 4.0, 12.0]], 0.385, 0.0) == "apart"
    assert met([[3.0, 4.0, 12.0]], 0.384, 0.0) == "agrees"
    # the cosine is 3 / 13 = 0.2308
    assert met([[3.0, 4.0, 12.0]], 0.384, 0.23) == "agrees"
    assert met([[3.0, 4.0, 12.0]], 0.384, 0.231) == "differs"
    assert met([[-3.0, 4.0, 12.0]], 0.384, 0.0) == "differs"
    assert met([[0.0, 5.0, 0.0]], 0.5, 0.0) == "differs"  # no correlation is no agreement
    assert met([[0.0, 0.0, 0.0]], 0.0, 0.0) == "apart"
    assert met([[3.0, 4.0, 0.0]], 0.5, 0.0, torch.zeros(1, 3)) == "differs"
    retention = Subspace(complement(space.columns.double()).float(), "retain")
    gradient = torch.tensor([[3.0, 4.0, 12.0]])
    assert regime(gradient, old, retention, overlap=0.385, agreement=0.0) == "apart"
    assert regime(gradient, old, retention, overlap=0.384, agreement=0.0) == "agrees"


@pytest.mark.parametrize("seed", range(3))
def test_joined_subspaces_are_the_span_of_all(seed: int) -> None:
    first, second, third = (random_space(12, size, 10 * seed + size) for size in (2, 3, 4))
    turned = Subspace(complement(third.columns.double()).float(), "retain")
    for spaces in ([first, second], [first, second, third], [first, turned]):
        whole = joined_spaces(spaces)
        size = sum(space.size() for space in spaces)
        assert whole.size() == size
        assert whole.kind == ("remove" if size <= 6 else "retain")
        basis = torch.linalg.qr(torch.cat([space.basis() for space in spaces], dim=1))[0]
        torch.testing.assert_close(projector(whole), basis @ basis.T, atol=1e-5, rtol=0)
    assert joined_spaces([third, turned, third]).size() == 4
    assert joined_spaces([first]) is first
    every = joined_spaces([random_space(12, 6, seed), random_space(12, 7, seed + 50)])
    assert every.size() == 12
    assert float(project_out(torch.ones(2, 12), every).abs().max()) == 0


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_gradients_are_those_of_the_tasks_own_loss(case: str) -> None:
    learner = cuber_learner(case)
    first, second = tasks_of(case)[:2]
    learner.learn(first)
    context = learner.begin(second)
    names = sorted(rule_of(learner)._gradients[0])
    rows = np.arange(len(context.task.data))[::-1][:9].copy()
    found = mean_gradients(context, names, rows)
    losses = []
    for row in rows:
        batch = context.passes.batch([(context.task.data, np.array([row]))])
        own = context.model.forward(batch).logits[:, 2:4]
        losses.append(functional.cross_entropy(own, batch.labels - 2))
    wanted = torch.autograd.grad(torch.stack(losses).mean(), [context.model.trained()[name] for name in names])
    for name, gradient in zip(names, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in context.model.trained().values())


@pytest.mark.parametrize("case", ["digits", "bert", "gpt2"])
def test_where_nothing_agrees_steps_are_orthogonal_to_every_old_task(case: str) -> None:
    learner = cuber_learner(case, **NOTHING_AGREES)
    changes, regimes = learn_third(learner, case)
    assert len(changes) >= 12
    assert {found for each in regimes for found in each.values()} == {"differs"}
    for name, change in changes.items():
        assert float(change.abs().max()) > 0 or rule_of(learner)._protected[name].columns.shape[1] == 0
        assert max(leak(learner, name, change, task) for task in (0, 1)) < 1e-6


def test_a_rule_that_protects_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cuber, "_protect", lambda self: None)
    learner = cuber_learner(**NOTHING_AGREES)
    changes, _ = learn_third(learner, "digits")
    assert max(leak(learner, name, change, 0) for name, change in changes.items()) > 1e-4


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_where_nothing_agrees_it_is_gpm(case: str) -> None:
    """To the bit with one old task; with two, where GPM holds the joined subspace."""
    ours, gpm = cuber_learner(case, **NOTHING_AGREES), gpm_learner(case)
    first, second, third = tasks_of(case)
    for learner in (ours, gpm):
        learner.learn(first)
        learner.learn(second)
    for part in ("adapter", "head"):
        assert same_state(ours.state().inner(part), gpm.state().inner(part)) is None
    context = ours.begin(third)
    (rule,) = gpm.method.rules
    assert isinstance(rule, GradientProjection)
    rule._memory.spaces = {name: rule_of(ours)._protected[name] for name in rule._memory.spaces}
    ours.fit(context, lambda report: None)
    ours.end(context)
    gpm.learn(third)
    for part in ("adapter", "head"):
        assert same_state(ours.state().inner(part), gpm.state().inner(part)) is None


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_only_tasks_that_agree_are_changed(case: str) -> None:
    """With one old task a weight moves among its inputs just where the two agree; with two, off those that do not."""
    learner = cuber_learner(case, overlap=0.3, strength=0.1)
    first, second, third = tasks_of(case)
    learner.learn(first)
    sizes: dict[str, list[float]] = {"agrees": [], "differs": [], "apart": []}
    for number, task in enumerate((second, third)):
        context = learner.begin(task)
        before, regimes = values_of(context), [dict(found) for found in rule_of(learner)._regimes]
        learner.fit(context, lambda report: None)
        after = values_of(context)
        for old, each in enumerate(regimes):
            for name, found in each.items():
                if number == 0 or found != "agrees":
                    sizes[found].append(leak(learner, name, after[name] - before[name], old))
        learner.end(context)
    assert len(sizes["agrees"]) >= 3
    assert len(sizes["differs"]) >= 10
    assert min(sizes["agrees"]) > 1e-4
    assert max(sizes["differs"] + sizes["apart"]) < 1e-6


def test_the_choice_is_made_once_and_for_every_weight_alone() -> None:
    learner = cuber_learner()
    first, second, third = digit_tasks()
    learner.learn(first)
    assert rule_of(learner)._regimes == []
    context = learner.begin(second)
    chosen = [dict(found) for found in rule_of(learner)._regimes]
    assert len(chosen) == 1
    assert len(chosen[0]) == 18
    learner.fit(context, lambda report: None)
    assert rule_of(learner)._regimes == chosen
    learner.end(context)
    learner.begin(third)
    assert len(rule_of(learner)._regimes) == 2


def test_the_term_is_the_first_order_change_of_old_losses() -> None:
    learner = cuber_learner(overlap=0.0, strength=3.0)
    first = digit_tasks()[0]
    assert rule_of(learner).penalty(learner.begin(first)) is None
    learner = cuber_learner(overlap=0.0, strength=3.0)
    learner.learn(first)
    context = learner.begin(first)  # the same classes again: everything agrees
    rule = rule_of(learner)
    assert set(rule._regimes[0].values()) == {"agrees"}
    penalty = rule.penalty(context)
    assert penalty is not None
    assert penalty.item() == 0
    before = values_of(context)
    names = sorted(rule._gradients[0])
    for name, gradient in zip(
        names, torch.autograd.grad(penalty, [context.model.trained()[n] for n in names]), strict=True
    ):
        torch.testing.assert_close(gradient, 3 * rule._gradients[0][name])
    loss = old_loss(context)
    steps = {name: -1e-3 * rule._gradients[0][name] for name in names}
    context.model.write({name: before[name] + steps[name] for name in names})
    moved = rule.penalty(context)
    assert moved is not None
    expected = 3 * float(torch.stack([(rule._gradients[0][n].double() * steps[n].double()).sum() for n in names]).sum())
    assert moved.item() == pytest.approx(expected, rel=0.02)
    assert (old_loss(context) - loss) == pytest.approx(expected / 3, rel=0.2)


def old_loss(context: Context) -> float:
    """Mean loss over the data at hand, on the first task's two classes."""
    with torch.no_grad():
        batch = context.passes.batch([(context.task.data, np.arange(len(context.task.data)))])
        return float(functional.cross_entropy(context.model.forward(batch).logits[:, :2], batch.labels).double())


@pytest.mark.parametrize("seed", range(8))
def test_a_step_that_agrees_lowers_a_quadratic_old_loss(seed: int) -> None:
    """L_j(W) = |(W - W*) X|^2 / 2: a small step along g + lambda g_j, off the inputs of no task, and its opposite."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    space = Subspace(torch.linalg.qr(inputs)[0], "remove")
    best, weight, new = (torch.randn(3, 6, generator=generator, dtype=torch.float64) for _ in range(3))

    def loss(at: Tensor) -> float:
        return float(((at - best) @ inputs).square().sum() / 2)

    old = (weight - best) @ inputs @ inputs.T
    for sign in (1.0, -1.0):
        gradient = sign * new
        found = regime(gradient, old, space, overlap=0.1, agreement=0.0)
        step = gradient + old if found == "agrees" else project_out(gradient, space)
        assert loss(weight - 1e-3 * step) <= loss(weight) + 1e-12
        if found == "agrees":
            assert loss(weight - 1e-3 * step) < loss(weight) - 1e-4
        else:
            assert loss(weight - 1e-3 * gradient) > loss(weight)
    signs = {regime(sign * new, old, space, overlap=0.1, agreement=0.0) for sign in (1.0, -1.0)}
    assert signs == {"agrees", "differs"}


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_an_old_task_gains_where_gpm_cannot_move(case: str) -> None:
    """The first task comes back after one short lesson: its loss falls further than under GPM."""
    gains = []
    for options in ({"overlap": 0.0}, NOTHING_AGREES):
        learner = cuber_learner(case, {**ADAMW, "epochs": 1, "lr": 2e-4}, threshold=0.999, **options)
        first = tasks_of(case)[0]
        learner.learn(first)
        context = learner.begin(first)
        before = old_loss(context)
        learner.fit(context, lambda report: None)
        gains.append(before - old_loss(context))
    assert gains[0] > 2 * gains[1]
    assert gains[0] > 0


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(CombinationError, match="weights of linear layers"):
        compose({"adapter": "bottleneck", "rules": ["cuber"]})
    for options in ({"threshold": 1.0}, {"overlap": 1.1}, {"agreement": -0.1}, {"examples": 0}, {"strength": -1.0}):
        with pytest.raises(ConfigError, match="give"):
            Cuber(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["bert", "gpt2"])
def test_texts_resume_exactly_with_their_regimes(case: str) -> None:
    learner, again = (cuber_learner(case, overlap=0.3) for _ in range(2))
    first, second, third = word_tasks()
    learner.learn(first)
    context, kept = learner.begin(second), []
    regimes, protected = rule_of(learner)._regimes, rule_of(learner)._protected
    assert "agrees" in regimes[0].values()

    def keep(report: Any) -> None:
        if report.step == 2:
            memory = {name: value.clone() for name, value in report.memory().items()}
            kept.append((copied(learner.state()), memory))

    learner.fit(context, keep)
    learner.end(context)
    learner.learn(third)
    resumed = again.load_state(kept[0][0], [second])
    assert resumed is not None
    assert rule_of(again)._regimes == regimes
    assert set(rule_of(again)._protected) == set(protected)
    assert all(torch.equal(rule_of(again)._protected[n].columns, space.columns) for n, space in protected.items())
    again.fit(resumed, lambda report: None, done=2, memory=kept[0][1])
    again.end(resumed)
    again.learn(third)
    assert same_state(learner.state(), again.state()) is None
