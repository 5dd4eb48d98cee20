"""Routers: who answers an example. Hand-worked numbers, plain references, and that nobody listens to a neighbour.

Golden choices and centres are from iamwangyabin/S-Prompts at a26e822ae1: `SPrompts._eval_cnn` and `SPrompts.clustering`
(methods/sprompt.py), run once on the tensors that `numbers` makes. Those of the keys are in test_dualprompt.py.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from word_tasks import tiny_folder, word_tasks

from contune.checks.run import SETTINGS, copied, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.contract.parts import Router
from contune.engine.learner import Learner
from contune.errors import ConfigError
from contune.method.catalog import compose
from contune.method.method import Method
from contune.router.centroids import Centroids, cluster_centres, nearest_centres
from contune.router.entropy import answer_entropy, classes_of_modules
from contune.router.keys import Keys
from contune.router.mahalanobis import Mahalanobis, grouped_scatter, shrunk, squared_distances
from contune.stream.task import Task

ROUTERS: list[Any] = [
    "keys",
    "centroids",
    {"centroids": {"count": 2, "distance": "euclidean"}},
    "entropy",
    {"entropy": {"relative": False}},
    "mahalanobis",
    {"mahalanobis": {"per": "class"}},
]
CASES = ["digits", "bert"]


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 3, 1))


def routed_learner(router: Any, case: str = "digits", adapter: Any = "prompt-per-task", head: Any = None) -> Learner:
    head = head or {"linear": {"loss_over": "own-task"}}
    model = tiny_model() if case == "digits" else tiny_folder(case)
    return Learner(
        model, compose({"adapter": adapter, "head": head, "router": router}), train={**SETTINGS, "epochs": 1}
    )


def learned(learner: Learner, tasks: list[Task]) -> Learner:
    for task in tasks:
        learner.learn(task)
    return learner


def routes_of(learner: Learner, task: Task, rows: list[int] | None = None) -> Tensor:
    """The modules chosen for a task's test examples, or for these rows of them alone."""
    chosen = task if rows is None else replace(task, test=task.test.take(rows))
    data = learner.test_dataset(chosen)
    return learner.reading(data).passes.routes(data)


def numbers(*shape: int, step: int) -> Tensor:
    count = int(torch.tensor(shape).prod())
    return ((torch.arange(count) * step % 23 - 11) / 10).reshape(shape)


def choices_that_depend_on_others(learner: Learner, task: Task) -> int:
    """How many examples are routed otherwise alone than among all."""
    together = routes_of(learner, task)
    alone = torch.cat([routes_of(learner, task, [row]) for row in range(12)])
    return int((together[:12] != alone).sum())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_every_example_chooses_for_itself_and_a_loaded_router_chooses_alike(router: Any, case: str) -> None:
    tasks = tasks_of(case)
    learner = learned(routed_learner(router, case), tasks)
    again = routed_learner(router, case)
    again.load_state(copied(learner.state()))
    assert same_state(learner.state(), again.state()) is None
    for task in tasks[1:2]:
        routes = routes_of(learner, task)
        assert choices_that_depend_on_others(learner, task) == 0
        assert set(routes.tolist()) <= {0, 1, 2}
        assert routes.tolist() == routes_of(again, task).tolist()


class Vote(Router):
    """All examples go where most of them want to: the planted fault."""

    name = "vote"

    def __init__(self, inner: Router) -> None:
        self.inner = inner

    def end_task(self, context: Context) -> None:
        self.inner.end_task(context)

    def route(self, context: Context, dataset: Dataset) -> Tensor:
        routes = self.inner.route(context, dataset)
        return torch.full_like(routes, int(routes.mode().values))


def test_a_router_that_lets_the_batch_vote_is_found() -> None:
    plain = compose({"adapter": "prompt-per-task", "head": "linear", "router": "centroids"})
    assert plain.router is not None
    method = Method(plain.adapter, plain.head, router=Vote(plain.router))
    learner = learned(Learner(tiny_model(), method, train={**SETTINGS, "epochs": 1}), tasks_of("digits"))
    assert sum(choices_that_depend_on_others(learner, task) for task in tasks_of("digits")) > 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("router", ["centroids", "mahalanobis", {"mahalanobis": {"per": "class"}}], ids=str)
def test_routers_of_frozen_features_find_the_task_far_above_chance(router: Any, case: str) -> None:
    tasks = tasks_of(case)
    learner = learned(routed_learner(router, case, {"prompt-per-task": {"length": 0}}), tasks)
    found = torch.cat([routes_of(learner, task) == number for number, task in enumerate(tasks)])
    assert float(found.float().mean()) > 0.6


@pytest.mark.parametrize("router", ["centroids", "mahalanobis", "keys", "entropy"])
def test_with_one_task_there_is_one_choice(router: str) -> None:
    learner = learned(routed_learner(router), tasks_of("digits")[:1])
    assert routes_of(learner, digit_tasks()[0]).unique().tolist() == [0]


# centroids


def test_centres_are_those_of_the_released_code() -> None:
    points = (4 * torch.eye(5, 6)).repeat(3, 1) + numbers(15, 6, step=7) / 5
    found = cluster_centres(functional.normalize(points.double(), dim=1), 5, 0)
    golden = [
        [-0.00503, 0.02919, -0.01099, -0.01481, 0.99718, 0.01669],
        [0.01473, 0.01199, -0.0299, 0.99655, 0.03952, -0.03982],
        [0.01749, 0.99688, 0.01007, 0.00726, -0.03595, -0.00016],
        [0.03508, -0.00628, 0.9965, 0.02502, -0.01634, -0.02029],
        [0.99772, -0.00536, 0.03102, -0.01166, -0.01576, 0.02063],
    ]
    assert torch.allclose(found[found[:, 0].argsort()], torch.tensor(golden).double(), atol=1e-5)


def test_the_nearest_centre_is_that_of_the_released_code() -> None:
    """And by the Euclidean distance, which the paper names, eight of the twenty would go elsewhere."""
    queries = functional.normalize(numbers(20, 4, step=11), dim=1)
    centres = torch.cat([numbers(3, 4, step=step) / 2 for step in (8, 21, 7)])
    golden = [2, 1, 2, 2, 0, 1, 1, 0, 0, 1, 0, 0, 1, 2, 2, 0, 1, 0, 0, 0]
    domains = torch.arange(9) // 3
    assert domains[nearest_centres(queries, centres, "l1")].tolist() == golden
    euclidean = domains[nearest_centres(queries, centres, "euclidean")]
    assert int((euclidean != torch.tensor(golden)).sum()) == 8
    plain = [int((q - centres).square().sum(dim=1).argmin()) // 3 for q in queries]
    assert euclidean.tolist() == plain


def test_centres_depend_on_the_points_and_the_seed_alone() -> None:
    points = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    found = cluster_centres(points, 4, 7)
    torch.manual_seed(1)
    np.random.seed(1)  # what scikit-learn reads where no seed is given
    assert torch.equal(cluster_centres(points, 4, 7), found)
    assert not torch.equal(cluster_centres(points, 4, 8), found)
    for centre in found:
        own = points[nearest_centres(points, found, "euclidean") == nearest_centres(centre[None], found, "euclidean")]
        assert torch.allclose(own.double().mean(dim=0), centre, atol=1e-5)


def test_few_different_points_have_as_many_centres() -> None:
    points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert sorted(cluster_centres(points, 5, 0).tolist()) == [[0.0, 1.0], [1.0, 0.0]]
    assert cluster_centres(points[:1], 5, 0).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("case", CASES)
def test_centres_of_a_task_are_not_touched_by_later_ones(case: str) -> None:
    tasks = tasks_of(case)
    learner = routed_learner("centroids", case)
    kept: list[Tensor] = []
    for task in tasks:
        learner.learn(task)
        state = learner.state()
        centres, modules = state.tensors["router/centres"], state.tensors["router/modules"]
        for number, earlier in enumerate(kept):
            assert torch.equal(centres[modules == number], earlier)
        kept.append(centres[modules == len(kept)].clone())
    assert all(len(centres) == 5 for centres in kept)
    other = learned(routed_learner("centroids", case), [tasks[0], tasks[2]])
    assert torch.equal(other.state().tensors["router/centres"][:5], kept[0])


def test_centres_lie_among_frozen_features_scaled_to_length_one() -> None:
    learner = routed_learner({"centroids": {"count": 1}})
    context = learner.begin(digit_tasks()[0])
    learner.fit(context, lambda report: None)
    learner.end(context)
    frozen = context.passes.base_features(context.task.data).double()
    wanted = (frozen / frozen.norm(dim=1, keepdim=True)).mean(dim=0)
    assert torch.allclose(learner.state().tensors["router/centres"][0], wanted, atol=1e-6)


def test_no_centres_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 centre"):
        Centroids(count=0)


# entropy


def test_entropy_of_hand_worked_answers() -> None:
    logits = torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]]).log()
    wanted = [-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)), np.log(2), 0.0]
    assert answer_entropy(logits, relative=False).tolist() == pytest.approx(wanted)
    assert answer_entropy(logits).tolist() == pytest.approx([value / np.log(2) for value in wanted])
    three = torch.tensor([[0.8, 0.1, 0.1]]).log()
    assert answer_entropy(three).item() == pytest.approx(-(0.8 * np.log(0.8) + 0.2 * np.log(0.1)) / np.log(3))


def test_an_answer_without_finite_scores_is_the_least_sure() -> None:
    nothing = torch.full((1, 3), float("-inf"))
    assert answer_entropy(nothing).item() == 1.0
    assert answer_entropy(nothing, relative=False).item() == float("inf")
    assert answer_entropy(torch.zeros(2, 1)).tolist() == [1.0, 1.0]
    assert answer_entropy(torch.zeros(2, 1), relative=False).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("head", [{"linear": {"loss_over": "own-task"}}, "linear-per-task"], ids=["linear", "own"])
def test_entropy_asks_every_module_about_its_own_classes(case: str, relative: bool, head: Any) -> None:
    tasks = tasks_of(case)
    learner = learned(routed_learner({"entropy": {"relative": relative}}, case, head=head), tasks)
    data = learner.test_dataset(tasks[1])
    context = learner.reading(data)
    columns, found = [learner.columns(task) for task in tasks], []
    for module, own in enumerate(columns):
        routes = torch.full((len(data),), module)
        scores = context.model.head.routed_logits(context.passes.module_features(data, module), routes, training=False)
        chances = scores.detach()[:, list(own)].double().softmax(dim=1).tolist()
        entropies = [-sum(p * np.log(p) for p in row if p) for row in chances]
        shares = [1.0 if len(own) == 1 else value / np.log(len(own)) for value in entropies]
        found.append(shares if relative else entropies)
    wanted = torch.tensor(found, dtype=torch.float64).argmin(dim=0)
    routes = context.passes.routes(data)
    assert routes.tolist() == wanted.tolist()
    if case == "bert":  # the last task has one class
        assert (2 in routes) is not relative


def test_modules_and_their_classes() -> None:
    first, second, third = tasks_of("digits")
    learner = routed_learner("entropy")
    learner.learn([first, second])
    learner.learn(third)
    found = classes_of_modules(learner.reading(None))
    assert {module: own.tolist() for module, own in found.items()} == {0: [0, 1, 2, 3], 1: [4, 5]}


# mahalanobis


def test_scatter_and_distances_are_those_of_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    points, groups = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    means, scatter = grouped_scatter(points, groups)
    rows = points.double().numpy()
    for group in range(3):
        assert np.allclose(means[group], rows[groups == group].mean(axis=0))
    wanted = sum(np.cov(rows[groups == group].T, bias=True) * 10 for group in range(3))
    assert np.allclose(scatter, wanted)
    covariance = shrunk(scatter / 30, 0.1)
    inverse = np.linalg.inv(covariance.numpy())
    plain = [[(x - m) @ inverse @ (x - m) for m in means.numpy()] for x in rows]
    assert np.allclose(squared_distances(points, means, covariance), plain)


def test_shrinking_draws_to_the_mean_variance() -> None:
    covariance = torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    assert shrunk(covariance, 0.5).tolist() == [[3.5, 0.5], [0.5, 2.5]]
    assert shrunk(covariance, 1.0).tolist() == [[3.0, 0.0], [0.0, 3.0]]
    assert shrunk(torch.zeros(2, 2), 0.5).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    for wrong in (0.0, 1.5):
        with pytest.raises(ConfigError, match="at most 1"):
            Mahalanobis(shrinkage=wrong)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("per", ["task", "class"])
def test_the_likeliest_gaussian_answers(case: str, per: str) -> None:
    tasks = tasks_of(case)
    learner = routed_learner({"mahalanobis": {"per": per, "shrinkage": 0.2}}, case)
    groups: list[tuple[int, Any]] = []
    for number, task in enumerate(tasks):
        context = learner.begin(task)
        learner.fit(context, lambda report: None)
        rows, labels = context.passes.base_features(context.task.data).double().numpy(), context.task.data.labels
        own = [labels == label for label in np.unique(labels)] if per == "class" else [labels >= 0]
        groups += [(number, rows[chosen]) for chosen in own]
        learner.end(context)
    total = sum(len(rows) for _, rows in groups)
    pooled = sum(np.cov(rows.T, bias=True) * len(rows) for _, rows in groups) / total
    width = len(pooled)
    inverse = np.linalg.inv(0.8 * pooled + 0.2 * np.trace(pooled) / width * np.eye(width))
    data = learner.test_dataset(tasks[1])
    context = learner.reading(data)
    wanted = []
    for x in context.passes.base_features(data).double().numpy():
        distances = [(x - rows.mean(axis=0)) @ inverse @ (x - rows.mean(axis=0)) for _, rows in groups]
        wanted.append(groups[int(np.argmin(distances))][0])
    assert context.passes.routes(data).tolist() == wanted


def test_gaussians_do_not_depend_on_the_order_of_tasks() -> None:
    first, second, third = tasks_of("digits")
    one = learned(routed_learner("mahalanobis"), [first, second, third])
    other = learned(routed_learner("mahalanobis"), [third, first, second])
    scatters = [learner.state().tensors["router/scatter"] for learner in (one, other)]
    assert torch.allclose(*scatters, atol=1e-9)
    place = torch.tensor([1, 2, 0])
    for task in (first, second, third):
        assert place[routes_of(one, task)].tolist() == routes_of(other, task).tolist()


def test_single_examples_leave_a_distance_to_measure() -> None:
    first, second, _ = tasks_of("digits")
    few = [replace(task, train=task.train.take([0])) for task in (first, second)]
    learner = learned(routed_learner("mahalanobis"), few)
    routes = routes_of(learner, first)
    assert set(routes.tolist()) <= {0, 1}
    data = learner.test_dataset(first)
    means = learner.state().tensors["router/means"]
    near = torch.cdist(learner.reading(data).passes.base_features(data).double(), means).argmin(dim=1)
    assert routes.tolist() == near.tolist()


# where the adapter learns in the first task only


@pytest.mark.parametrize("make", [Keys, Centroids, Mahalanobis])
def test_one_module_for_all_tasks_is_the_only_choice(make: Callable[[], Router]) -> None:
    parts = compose({"adapter": "prompt-per-task", "head": "linear", "router": "centroids"})
    method = Method(parts.adapter, parts.head, router=make(), adapt="first-task")
    learner = learned(Learner(tiny_model(), method, train={**SETTINGS, "epochs": 1}), tasks_of("digits"))
    assert all(routes_of(learner, task).unique().tolist() == [0] for task in digit_tasks())
