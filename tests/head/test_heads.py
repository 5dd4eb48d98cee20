"""Closed-form heads: exact over any split and order, against plain references."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contune.checks.run import digit_tasks, new_learner
from contune.engine.learner import Learner
from contune.errors import ConfigError
from contune.head.linear import Linear
from contune.head.solved import ridge
from contune.head.solved.class_means import nearest_mean_scores
from contune.head.solved.ridge import STRENGTHS, best_strength, random_features, ridge_solution
from contune.method.catalog import build_method, compose
from contune.numerics.averages import class_sums


def joint_ridge(h: torch.Tensor, y: torch.Tensor, strength: float) -> torch.Tensor:
    return torch.linalg.solve(h.T @ h + strength * torch.eye(h.shape[1], dtype=h.dtype), h.T @ y)


def test_ridge_after_all_tasks_equals_the_joint_solution() -> None:
    learner = new_learner(build_method("ranpac", {"form": "small", "random_features": 64, "strength": 10.0}))
    features, labels = [], []
    for task in digit_tasks():
        context = learner.begin(task)
        features.append(context.passes.features(context.task.data))
        labels.append(torch.from_numpy(context.task.data.labels))
        learner.fit(context, lambda report: None)
        learner.end(context)
    head = learner.method.head
    projection = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    projection = getattr(head, "_projection", projection)
    h = random_features(torch.cat(features), projection)
    y = torch.nn.functional.one_hot(torch.cat(labels)).double()
    weight = head.state().tensors["weight"]
    expected = joint_ridge(h, y, 10.0)
    assert (weight - expected).abs().max() < 1e-8 * expected.abs().max()


@pytest.mark.parametrize("rows", [8, 60])
def test_strength_search_agrees_with_a_solve_for_each(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    h, held = (torch.randn(n, 20, generator=generator, dtype=torch.float64) for n in (rows, 12))
    y, held_y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (rows, 12))
    errors = [(held @ joint_ridge(h, y, s) - held_y).square().mean().item() for s in STRENGTHS[6:]]
    assert best_strength(h, y, held, held_y, STRENGTHS[6:]) == STRENGTHS[6:][int(np.argmin(errors))]


def test_a_singular_gram_still_gives_a_finite_solution() -> None:
    h = torch.ones(4, 3, dtype=torch.float64)
    weight = ridge_solution(h.T @ h, h.T @ torch.ones(4, 1, dtype=torch.float64), 0.0)
    assert torch.isfinite(weight).all()
    assert torch.allclose(h @ weight, torch.ones(4, 1, dtype=torch.float64))


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 39), st.integers(0, 100))
def test_class_means_do_not_depend_on_the_split(count: int, cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 5, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    whole, sizes = class_sums(features, labels, 3)
    first, some = class_sums(features[:cut], labels[:cut], 3)
    second, rest = class_sums(features[cut:], labels[cut:], 3)
    assert torch.allclose(whole, first + second, rtol=0, atol=1e-12)
    assert torch.equal(sizes, some + rest)


def test_cosine_and_euclidean_agree_on_unit_vectors() -> None:
    features, means = (torch.nn.functional.normalize(torch.randn(n, 6), dim=1) for n in (20, 4))
    cosine, euclidean = (nearest_mean_scores(features, means, metric).argmax(1) for metric in ("cosine", "euclidean"))
    assert torch.equal(cosine, euclidean)


def test_nmc_does_not_depend_on_the_order_of_tasks() -> None:
    answers = []
    for tasks in (digit_tasks(), digit_tasks()[::-1]):
        learner = new_learner(build_method("nmc", {}))
        for task in tasks:
            learner.learn(task)
        images = [image for task in digit_tasks() for image in task.test.inputs]
        answers.append(learner.predict(images))
    assert answers[0] == answers[1]


def strengths_of(chosen: list[float]) -> Learner:
    """RanPAC on the tasks of digits, each of which chooses one of these strengths."""
    learner = new_learner(build_method("ranpac", {"form": "small", "random_features": 64}))
    for task, strength in zip(digit_tasks(), chosen, strict=False):
        with pytest.MonkeyPatch.context() as patch:
            for name in ("best_strength", "best_strength_of_sums"):
                patch.setattr(ridge, name, lambda *_, strength=strength: strength)
            learner.learn(task)
    return learner


@pytest.mark.parametrize("fault", [False, True])
def test_forgetting_the_last_task_equals_never_having_learned_it(fault: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the planted fault the strength of the forgotten task stays."""
    if fault:
        monkeypatch.setattr(ridge, "searches_left", lambda searches, counts, trace: list(searches))
    never, learner = strengths_of([1.0, 100.0]), strengths_of([1.0, 100.0, 1e5])
    learner.forget(digit_tasks()[2])
    expected, found = (each.state().tensors["head/weight"][:, :4] for each in (never, learner))
    apart = float((found - expected).norm() / expected.norm())
    assert apart > 0.1 if fault else apart < 1e-8


def test_forgetting_an_earlier_task_leaves_the_strength_of_the_last() -> None:
    learner = strengths_of([1.0, 100.0, 1e5])
    learner.forget(digit_tasks()[1])
    assert learner.state().inner("head").values["strength"] == 1e5
    learner.forget(digit_tasks()[2])
    expected, found = (each.state().tensors["head/weight"][:, :2] for each in (strengths_of([1.0]), learner))
    assert float((found - expected).norm() / expected.norm()) < 1e-8


@pytest.mark.parametrize("spread", [None, 0.0, 0.02])
def test_rows_of_new_classes_start_as_far_apart_as_is_said(spread: float | None) -> None:
    learner = new_learner(compose({"adapter": "none", "head": {"linear": {"start_spread": spread}}}))
    learner.learn(digit_tasks()[0])
    old = learner.state().tensors["head/weight"].clone()
    learner.begin(digit_tasks()[1])
    weight = learner.state().tensors["head/weight"]
    assert torch.equal(weight[:2], old)
    deviation, furthest = float(weight[2:].std()), float(weight[2:].abs().max())
    if spread is None:
        assert deviation == pytest.approx((1 / 32 / 3) ** 0.5, rel=0.3)
        assert furthest <= 32**-0.5
    else:
        assert deviation == pytest.approx(spread, rel=0.3)
        assert (furthest > 0) == (spread > 0)


def test_a_spread_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="start_spread"):
        Linear(start_spread=-0.1)
