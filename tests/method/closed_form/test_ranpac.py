"""RanPAC: what its forms train, what they keep still, and what unlearning takes out of each."""

from typing import Any

import pytest
import torch
from objective_tasks import TASKS, learner_of

from contune.checks.common import check_method
from contune.checks.run import digit_tasks, new_learner
from contune.checks.sizes import checked_method
from contune.engine.learner import Learner
from contune.head.solved.ridge import Ridge, random_features
from contune.method.catalog import build_method
from contune.method.closed_form.aper import LOOP

FORMS = ("adapter", "ssf", "vpt-shallow", "vpt-deep")


def head_of(learner: Learner) -> Ridge:
    head = learner.method.head
    assert isinstance(head, Ridge)
    return head


def learned(**options: Any) -> Learner:
    learner = new_learner(checked_method("ranpac", **options))
    for task in digit_tasks():
        learner.learn(task)
    return learner


def adapter_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.state().inner("adapter").tensors.items()}


def test_the_forms_are_the_papers_and_a_small_one() -> None:
    paper, small = build_method("ranpac", {}), build_method("ranpac", {"form": "small"})
    for method, features, adapter in ((paper, 10_000, "bottleneck"), (small, 2_000, "none")):
        assert isinstance(method.head, Ridge)
        assert (method.head.random_features, method.adapter.name, method.adapt) == (features, adapter, "first-task")
    assert paper.train == LOOP
    assert small.train == {"epochs": 0}
    own = build_method("ranpac", {"form": "small", "random_features": 0}).head
    assert isinstance(own, Ridge)
    assert own.random_features == 0


@pytest.mark.parametrize("form", FORMS)
def test_the_adapter_learns_from_the_first_task_alone_through_a_cosine_that_is_dropped(form: str) -> None:
    learner = new_learner(checked_method("ranpac", form=form))
    start = {name: value.detach().clone() for name, value in learner.method.adapter.trained().items()}
    context = learner.begin(digit_tasks()[0])
    assert set(learner.method.head.trained()) == {"weight", "scale"}
    learner.fit(context, lambda report: None)
    learner.end(context)
    assert not learner.method.head.trained()
    after_first = adapter_of(learner)
    assert any(not torch.equal(value, after_first[name]) for name, value in start.items())
    for task in digit_tasks()[1:]:
        learner.learn(task)
    assert all(torch.equal(value, after_first[name]) for name, value in adapter_of(learner).items())
    assert learner.base_unchanged()


@pytest.mark.parametrize("form", ["adapter", "small"])
def test_the_head_is_ridge_on_what_the_adapter_has_made_of_the_features(form: str) -> None:
    learner = learned(form=form, strength=10.0, random_features=50)
    features, labels = [], []
    for task in digit_tasks():
        features.append(learner.reading(None).passes.features(learner.context([task], 0).task.data))
        labels.append(torch.tensor(learner.columns(task))[torch.from_numpy(task.train.labels)])
    h = random_features(torch.cat(features), head_of(learner)._projection)
    y = torch.nn.functional.one_hot(torch.cat(labels)).double()
    expected = torch.linalg.solve(h.T @ h + 10.0 * torch.eye(50, dtype=h.dtype), h.T @ y)
    found = learner.state().tensors["head/weight"]
    assert (found - expected).abs().max() < 1e-8 * expected.abs().max()


@pytest.mark.parametrize("form", ["adapter", "small"])
def test_unlearning_leaves_the_head_that_never_learned_it(form: str) -> None:
    whole, without = (new_learner(checked_method("ranpac", form=form, strength=10.0)) for _ in range(2))
    first, second, third = digit_tasks()
    for task in (first, second, third):
        whole.learn(task)
    for task in (first, third):
        without.learn(task)
    kept = adapter_of(whole)
    whole.forget(second)
    order = [0, 1, 4, 5]  # columns of the first and of the third task
    found, expected = (learner.state().tensors["head/weight"] for learner in (whole, without))
    assert (found[:, order] - expected).abs().max() < 1e-8 * expected.abs().max()
    assert all(torch.equal(value, kept[name]) for name, value in adapter_of(whole).items())
    assert not set(whole.predict(list(second.test.inputs))) & set(second.class_names)


def test_where_classes_do_not_compete_a_linear_head_is_lent() -> None:
    for objective, names in (("regress", {"weight", "bias"}), ("multi-label", {"weight", "bias"})):
        learner = learner_of(objective, checked_method("ranpac"), train={"min_steps": 0})
        context = learner.begin(TASKS[objective][0])
        assert set(learner.method.head.trained()) == names
        learner.fit(context, lambda report: None)
        state = learner.state()
        again = learner_of(objective, checked_method("ranpac"), train={"min_steps": 0})
        again.load_state(state, [TASKS[objective][0]])
        assert set(again.method.head.trained()) == names


@pytest.mark.parametrize("form", ["small", "ssf"])
def test_passes_the_common_checks(form: str) -> None:
    assert [p for p in check_method(lambda: checked_method("ranpac", form=form)) if p[1]] == []
