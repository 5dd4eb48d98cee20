"""DKVB: what one example changes, an example with other keys never sees; keys and projections never change."""

from typing import Any

import numpy as np
import pytest
import torch
from resume_helpers import go_on, learn_keeping
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.checks.run import accuracy, digit_tasks, same_state, tiny_model
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head.solved.key_value import KeyValue, k_means, nearest_keys, pooled_values, spread_start
from contune.method.catalog import build_method, compose
from contune.stream.task import Task

SIZES = {"books": 8, "pairs": 16, "key_size": 4}


def dkvb_learner(train: dict[str, Any] | None = None, **options: Any) -> Learner:
    return Learner(tiny_model(), build_method("dkvb", {**SIZES, **options}), train={"epochs": 2, **(train or {})})


def head_of(learner: Learner) -> KeyValue:
    head = learner.method.head
    assert isinstance(head, KeyValue)
    return head


def test_nearest_keys_are_those_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    points, keys = torch.randn(3, 300, 4, generator=generator), torch.randn(3, 7, 4, generator=generator)
    expected = torch.stack([torch.cdist(points[book], keys[book]).argmin(dim=1) for book in range(3)], dim=1)
    assert torch.equal(nearest_keys(points, keys), expected)


def test_scores_are_the_mean_of_the_values_found() -> None:
    values = torch.arange(12.0).reshape(6, 2)  # two codebooks of three pairs
    places = torch.tensor([[0, 2], [1, 1]])
    expected = torch.stack([(values[0] + values[5]) / 2, (values[1] + values[4]) / 2])
    assert torch.equal(pooled_values(values, places), expected)


def test_a_step_changes_only_values_that_were_found() -> None:
    learner = dkvb_learner({"batch_size": 4, "epochs": 1})
    context = learner.begin(digit_tasks()[0])
    head = head_of(learner)
    found = head.places(context.passes.features(context.task.data))
    seen: list[set[int]] = []
    before = [head.trained()["values"].detach().clone()]

    def after_step(report: Any) -> None:
        now = head.trained()["values"].detach().clone()
        seen.append({int(row) for row in (now != before[0]).any(dim=1).nonzero()[:, 0]})
        before[0] = now

    learner.fit(context, after_step)
    possible = {int(place) + 16 * book for row in found for book, place in enumerate(row)}
    assert all(0 < len(rows) <= 4 * 8 for rows in seen)
    assert set().union(*seen) == possible
    assert len(possible) < 8 * 16


def test_momentum_would_change_more_which_is_why_there_is_none() -> None:
    """A planted fault: with momentum a step moves values that this batch did not find."""
    learner = dkvb_learner({"batch_size": 4, "epochs": 1, "momentum": 0.9})
    context = learner.begin(digit_tasks()[0])
    values, counts = head_of(learner).trained()["values"], []
    before = [values.detach().clone()]

    def after_step(report: Any) -> None:
        counts.append(int((values != before[0]).any(dim=1).sum()))
        before[0] = values.detach().clone()

    learner.fit(context, after_step)
    assert max(counts) > 4 * 8


def train_on(values: Tensor, places: Tensor, labels: Tensor, rate: float = 0.5) -> Tensor:
    """One plain SGD step of cross-entropy per row, in order."""
    values = values.clone().requires_grad_()
    for row, label in zip(places, labels, strict=True):
        loss = torch.nn.functional.cross_entropy(pooled_values(values, row[None]), label[None])
        (gradient,) = torch.autograd.grad(loss, values)
        values = (values - rate * gradient).detach().requires_grad_()
    return values.detach()


def test_examples_with_other_keys_do_not_see_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4 * 10, 3, generator=generator)
    low, high = (torch.randint(first, first + 5, (6, 4), generator=generator) for first in (0, 5))
    before = pooled_values(values, high)
    after = pooled_values(train_on(values, low, torch.arange(6) % 3), high)
    assert torch.equal(before, after)
    overlapping = low.clone()
    overlapping[:, 0] = high[:, 0]
    assert not torch.equal(before, pooled_values(train_on(values, overlapping, torch.arange(6) % 3), high))


def test_the_order_of_examples_with_other_keys_does_not_matter() -> None:
    values = torch.zeros(4 * 10, 3)
    places = torch.stack([torch.full((4,), key) for key in range(6)])
    labels, order = torch.arange(6) % 3, torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(train_on(values, places, labels), train_on(values, places[order], labels[order]))


def test_two_tasks_in_disjoint_keys_do_not_forget() -> None:
    learner = dkvb_learner()
    learner.learn(digit_tasks()[0])
    head = head_of(learner)
    values = head.trained()["values"].detach().clone()
    context = learner.begin(digit_tasks()[1])
    found = head.places(context.passes.features(context.task.data))
    learner.fit(context, lambda report: None)
    untouched = torch.ones(8 * 16, dtype=torch.bool)
    untouched[(found + 16 * torch.arange(8)).flatten()] = False
    assert untouched.any()
    after = head.trained()["values"].detach()
    assert torch.equal(after[untouched][:, :2], values[untouched])
    assert not torch.equal(after[~untouched][:, :2], values[~untouched])


@pytest.mark.parametrize("keys", ["gaussian", "k-means"])
def test_keys_and_projection_never_change(keys: str) -> None:
    learner = dkvb_learner(keys=keys)
    learner.learn(digit_tasks()[0])
    head = head_of(learner)
    before = {**{n: t.clone() for n, t in head._frozen.items()}, "projection": head._projection.clone()}
    for task in digit_tasks()[1:]:
        learner.learn(task)
    after = {**head._frozen, "projection": head._projection}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert set(head.trained()) == {"values"}


def test_new_classes_start_at_zero_and_leave_old_scores() -> None:
    learner = dkvb_learner()
    learner.learn(digit_tasks()[0])
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    before = learner.method.head.logits(features)
    learner.begin(digit_tasks()[1])
    after = learner.method.head.logits(features)
    assert torch.equal(after[:, :2], before)
    assert after[:, 2:].abs().max() == 0


def test_k_means_finds_separate_groups_and_starts_far_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (centres.repeat(20, 1) + 0.1 * torch.randn(60, 2, generator=generator)).expand(4, -1, -1)
    started = spread_start(points, 3, generator)
    assert (torch.cdist(started, started) + 100 * torch.eye(3)).min() > 5
    found = k_means(points, 3, generator)
    assert (torch.cdist(centres.expand(4, -1, -1), found).amin(dim=2) < 0.1).all()


def test_k_means_of_equal_points_is_that_point() -> None:
    found = k_means(torch.ones(2, 5, 3), 4, torch.Generator().manual_seed(0))
    assert torch.allclose(found, torch.ones(2, 4, 3))


def test_keys_by_k_means_lie_on_the_first_task_and_the_rest_is_drawn() -> None:
    """More pairs than examples: one key for each example, the others normal."""
    learner = dkvb_learner(keys="k-means", pairs=64)
    context = learner.begin(digit_tasks()[0])
    head = head_of(learner)
    features = context.passes.features(context.task.data).double()
    standard = (features @ head._projection - head._frozen["mean"]) / head._frozen["deviation"]
    nearest = torch.cdist(standard, head._frozen["keys"]).amin(dim=2)
    assert nearest.max() < 1.0
    assert head._frozen["keys"].shape == (8, 64, 4)


def test_more_of_the_keys_serve_later_tasks_when_drawn_than_when_fitted() -> None:
    used = {}
    for keys in ("gaussian", "k-means"):
        learner = dkvb_learner(keys=keys, books=32, pairs=40)
        context = learner.begin(digit_tasks()[0])
        places = head_of(learner).places(context.passes.features(context.task.data))
        used[keys] = sum(len(torch.unique(column)) for column in places.T) / (32 * 40)
    assert used["k-means"] > used["gaussian"], "fitted keys are spent on the first task"


def test_one_example_gives_a_finite_key_space() -> None:
    first = digit_tasks()[0]
    alone = Task("one", first.class_names, first.train.take([0]), first.test.take([]))
    learner = dkvb_learner(keys="k-means")
    learner.learn(alone)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in learner.state().tensors.values())


def test_resumes_inside_the_second_task() -> None:
    whole = dkvb_learner()
    whole.learn(digit_tasks()[0])
    halfway = learn_keeping(whole, digit_tasks()[1])
    again = dkvb_learner()
    go_on(again, halfway)
    assert same_state(whole.state(), again.state()) is None


@pytest.mark.parametrize("keys", ["gaussian", "k-means"])
def test_texts_in_tasks_of_unequal_size(keys: str) -> None:
    tasks = word_tasks((1, 3, 2))
    learner = Learner(tiny_folder("bert"), build_method("dkvb", {"keys": keys}), train={"batch_size": 4})
    for task in tasks:
        learner.learn(task)
    assert accuracy(learner, tasks) > 0.6
    assert learner.base_unchanged()


def test_an_answer_does_not_depend_on_its_company() -> None:
    learner = dkvb_learner()
    learner.learn(digit_tasks()[0])
    features = torch.randn(600, 32, generator=torch.Generator().manual_seed(0))
    head = learner.method.head
    alone = torch.cat([head.logits(features[row : row + 1]) for row in range(600)])
    assert torch.equal(head.logits(features), alone)


def test_features_that_change_and_empty_books_are_refused() -> None:
    with pytest.raises(CombinationError, match="adapter: none"):
        compose({"adapter": "lora", "head": "key-value"})
    with pytest.raises(ConfigError, match="pairs 0"):
        build_method("dkvb", {"pairs": 0})


def test_seeds_give_other_keys() -> None:
    keys = []
    for seed in (0, 0, 1):
        learner = dkvb_learner({"seed": seed})
        learner.begin(digit_tasks()[0])
        keys.append(head_of(learner)._frozen["keys"])
    assert torch.equal(keys[0], keys[1])
    assert not torch.equal(keys[0], keys[2])
    assert np.isfinite(keys[2].numpy()).all()
