"""ACIL and ACU: sums of ridge regression are the recursion, and unlearning is never having learned."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from word_tasks import tiny_folder, word_tasks

from contune.checks.common import check_method
from contune.checks.run import SETTINGS, accuracy, copied, digit_tasks, same_state, tiny_model
from contune.contract.data import Dataset
from contune.engine.learner import Learner
from contune.errors import ConfigError, DataError
from contune.head.solved.ridge import STRENGTHS, Ridge, random_features, random_projection, ridge_solution
from contune.method.catalog import build_method
from contune.stream.task import Examples, Task

GAMMA = 0.1
EXPANSION = 64


def acil_learner(**options: Any) -> Learner:
    train = {**SETTINGS, "epochs": 3 if options.get("first_task") else 0}
    return Learner(tiny_model(), build_method("acil", {"expansion": EXPANSION, "gamma": GAMMA, **options}), train=train)


def learned(tasks: list[Task] | None = None, **options: Any) -> Learner:
    learner = acil_learner(**options)
    for task in tasks or digit_tasks():
        learner.learn(task)
    return learner


def expanded(learner: Learner, examples: Examples) -> Tensor:
    """h(x) of examples, by the same features and a projection drawn again."""
    rows = np.zeros(len(examples), dtype=np.int64)
    dataset = Dataset.of(examples, learner.backbone, rows, rows)
    features = learner.reading(None).passes.features(dataset)
    head = learner.method.head
    assert isinstance(head, Ridge)
    return random_features(features, head._projection)


def one_hot(labels: list[int], classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), classes).double()


def ridge(h: Tensor, y: Tensor, gamma: float = GAMMA) -> Tensor:
    return torch.linalg.solve(h.T @ h + gamma * torch.eye(h.shape[1], dtype=h.dtype), h.T @ y)


def learn_step(r: Tensor, w: Tensor, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One recursive update of ACIL."""
    k = torch.linalg.inv(torch.eye(len(h), dtype=h.dtype) + h @ r @ h.T)
    r = r - r @ h.T @ k @ h @ r
    r = (r + r.T) / 2
    return r, w + r @ h.T @ (y - h @ w)


def unlearn_step(r: Tensor, w: Tensor, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One recursive down-date of ACU."""
    k = torch.linalg.inv(torch.eye(len(h), dtype=h.dtype) - h @ r @ h.T)
    r = r + r @ h.T @ k @ h @ r
    r = (r + r.T) / 2
    return r, w - r @ h.T @ (y - h @ w)


def recursion(h: Tensor, labels: list[int], size: int) -> tuple[Tensor, Tensor]:
    """The recursion over batches of `size`, the weight growing with the classes."""
    r, w = torch.eye(h.shape[1], dtype=h.dtype) / GAMMA, torch.zeros(h.shape[1], 0, dtype=h.dtype)
    for start in range(0, len(h), size):
        classes = max(w.shape[1], max(labels[start : start + size]) + 1)
        w = torch.cat([w, w.new_zeros(len(w), classes - w.shape[1])], dim=1)
        r, w = learn_step(r, w, h[start : start + size], one_hot(labels[start : start + size], classes))
    return r, w


def all_data(learner: Learner) -> tuple[Tensor, list[int]]:
    h = torch.cat([expanded(learner, task.train) for task in digit_tasks()])
    labels = [column for n, task in enumerate(digit_tasks()) for column in (task.train.labels + 2 * n).tolist()]
    return h, labels


@pytest.mark.parametrize("size", [1, 7, 48, 4096])
def test_the_sums_give_what_the_recursion_gives_for_any_batch_size(size: int) -> None:
    learner = learned()
    h, labels = all_data(learner)
    r, w = recursion(h, labels, size)
    weight = learner.state().tensors["head/weight"]
    gram = learner.state().tensors["head/gram"]
    assert (weight - w).abs().max() < 1e-9
    assert (torch.linalg.inv(gram + GAMMA * torch.eye(EXPANSION, dtype=gram.dtype)) - r).abs().max() < 1e-9


def test_order_and_split_of_tasks_do_not_matter() -> None:
    first = learned().state().tensors["head/weight"]
    tasks = list(digit_tasks())[::-1]
    halves = [t for task in tasks for t in (part(task, slice(0, 48, 2)), part(task, slice(1, 48, 2)))]
    learner = learned(halves)
    order = [learner.class_names.index(name) for task in digit_tasks() for name in task.class_names]
    assert (learner.state().tensors["head/weight"][:, order] - first).abs().max() < 1e-5  # float32 features
    assert accuracy(learner, digit_tasks()) == accuracy(learned(), digit_tasks())


def part(task: Task, rows: slice) -> Task:
    return Task(task.name, task.class_names, task.train.take(np.arange(len(task.train))[rows]), task.test)


def test_eigenvalues_of_the_inverse_lie_below_one_over_gamma_and_rise_with_unlearning() -> None:
    values = []
    learner = acil_learner()
    for task in digit_tasks():
        learner.learn(task)
        values.append(inverse_eigenvalues(learner))
    learner.forget(digit_tasks()[2])
    values.append(inverse_eigenvalues(learner))
    for each in values:
        assert float(each.min()) > 0
        assert float(each.max()) <= 1 / GAMMA + 1e-9
    assert bool((values[1] <= values[0] + 1e-9).all())
    assert bool((values[2] <= values[1] + 1e-9).all())
    assert torch.allclose(values[3], values[1], atol=1e-9)


def inverse_eigenvalues(learner: Learner) -> Tensor:
    gram = learner.state().tensors["head/gram"]
    assert torch.allclose(gram, gram.T)
    return (1 / (torch.linalg.eigvalsh(gram) + GAMMA)).sort().values


def test_unlearning_a_task_is_ridge_on_the_rest_and_undoes_the_learning() -> None:
    learner = learned(list(digit_tasks()[:2]))
    before = copied(learner.state()).tensors
    learner.learn(digit_tasks()[2])
    learner.forget(digit_tasks()[2])
    after = learner.state().tensors
    assert (after["head/gram"] - before["head/gram"]).abs().max() < 1e-9
    assert (after["head/weight"][:, :4] - before["head/weight"]).abs().max() < 1e-9
    h, labels = all_data(learner)
    assert (after["head/weight"][:, :4] - ridge(h[:96], one_hot(labels[:96], 4))).abs().max() < 1e-9
    answers = learner.predict([image for task in digit_tasks() for image in task.test.inputs])
    assert not set(answers) & set(digit_tasks()[2].class_names)


def test_unlearning_equals_the_published_down_date() -> None:
    learner = learned()
    h, labels = all_data(learner)
    r, w = recursion(h, labels, 16)
    _, w = unlearn_step(r, w, h[48:96], one_hot(labels[48:96], 6))
    learner.forget(digit_tasks()[1])
    weight = learner.state().tensors["head/weight"]
    kept = [0, 1, 4, 5]
    assert (weight[:, kept] - w[:, kept]).abs().max() < 1e-9
    assert weight[:, 2:4].abs().max() < 1e-9


def test_unlearning_some_examples_is_ridge_on_the_rest_up_to_float32_features() -> None:
    """Some of a task come in other batches, whose float32 features differ in the last bit."""
    learner = learned()
    rows = np.arange(0, 48, 3)
    task = digit_tasks()[1]
    learner.forget(Task(task.name, task.class_names, task.train.take(rows), task.test))
    h, labels = all_data(learner)
    kept = [i for i in range(len(h)) if i not in set((48 + rows).tolist())]
    expected = ridge(h[kept], one_hot([labels[i] for i in kept], 6))
    weight = learner.state().tensors["head/weight"]
    assert (weight - expected).abs().max() < 1e-4 * expected.abs().max()
    assert learner.state().tensors["head/counts"].tolist() == [
        24,
        24,
        *np.bincount(task.train.labels[[i for i in range(48) if i % 3]]),
        24,
        24,
    ]


def test_unlearning_the_same_features_is_exact_for_any_part() -> None:
    head = Ridge(random_features=EXPANSION, strength=GAMMA, projection="kaiming-uniform")
    context = acil_learner().begin(digit_tasks()[0])
    head.begin_task(context)
    head.fit(context)
    features = context.passes.features(context.task.data)
    rows = torch.arange(48)[::3]
    labels = torch.from_numpy(context.task.data.labels)
    head._add(features[rows], torch.nn.functional.one_hot(labels[rows], 2).double(), -1.0)
    kept = torch.tensor([i for i in range(48) if i % 3])
    h = random_features(features[kept], head._projection)
    expected = ridge(h, torch.nn.functional.one_hot(labels[kept], 2).double())
    tensors = head.state().tensors
    assert (ridge_solution(tensors["gram"], tensors["targets"], GAMMA) - expected).abs().max() < 1e-9


def test_a_class_removed_is_never_answered_not_even_for_its_own_images() -> None:
    learner = learned()
    task = digit_tasks()[0]
    zeros = np.flatnonzero(task.train.labels == 0)
    learner.forget(Task(task.name, task.class_names, task.train.take(zeros), task.test))
    images = [image for each in digit_tasks() for image in each.test.inputs] + list(task.train.inputs)
    assert task.class_names[0] not in learner.predict(images)
    assert learner.state().tensors["head/targets"][:, 0].abs().max() == 0
    assert task.class_names[1] in learner.predict(list(task.test.inputs))


def test_a_class_removed_can_be_learned_again() -> None:
    learner = learned()
    before = learner.state().tensors["head/weight"].clone()
    learner.forget(digit_tasks()[0])
    learner.learn(digit_tasks()[0])
    assert (learner.state().tensors["head/weight"] - before).abs().max() < 1e-9


def test_unlearning_survives_saving_and_loading() -> None:
    whole = learned(list(digit_tasks()[:2]))
    whole.forget(digit_tasks()[0])
    again = acil_learner()
    again.load_state(copied(whole.state()))
    assert same_state(whole.state(), again.state()) is None
    for learner in (whole, again):
        learner.learn(digit_tasks()[2])
        learner.forget(digit_tasks()[1])
    assert same_state(whole.state(), again.state()) is None
    images = [image for task in digit_tasks() for image in task.test.inputs]
    assert whole.predict(images) == again.predict(images)
    assert set(whole.predict(images)) <= set(digit_tasks()[2].class_names)


def test_what_was_never_learned_cannot_be_forgotten() -> None:
    learner = learned(list(digit_tasks()[:1]))
    learner.forget(digit_tasks()[0])
    with pytest.raises(DataError, match="0 learned examples"):
        learner.forget(digit_tasks()[0])


def test_a_fault_in_the_subtraction_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: the Gram matrix keeps the forgotten examples."""
    learner = learned()
    gram = learner.state().tensors["head/gram"].clone()
    monkeypatch.setattr(Ridge, "_add", forgetful(gram))
    learner.forget(digit_tasks()[2])
    monkeypatch.undo()
    h, labels = all_data(learner)
    expected = ridge(h[:96], one_hot(labels[:96], 4))
    assert (learner.state().tensors["head/weight"][:, :4] - expected).abs().max() > 1e-4


def forgetful(gram: Tensor) -> Any:
    right = Ridge._add

    def wrong(self: Ridge, features: Tensor, targets: Tensor, sign: float) -> None:
        right(self, features, targets, sign)
        self._gram = gram

    return wrong


def test_it_is_ranpac_with_the_same_strength_and_projection() -> None:
    context = acil_learner().begin(digit_tasks()[0])
    heads = [Ridge(random_features=32, strength=7.0), Ridge(random_features=32, strength=7.0)]
    for head in heads:
        head.begin_task(context)
        head.fit(context)
    h = random_features(context.passes.features(context.task.data), heads[0]._projection)
    y = torch.nn.functional.one_hot(torch.from_numpy(context.task.data.labels), 2).double()
    r, w = torch.eye(32, dtype=torch.float64) / 7.0, torch.zeros(32, 2, dtype=torch.float64)
    for start in range(0, 48, 5):
        r, w = learn_step(r, w, h[start : start + 5], y[start : start + 5])
    assert (heads[1].state().tensors["weight"] - w).abs().max() < 1e-9


def test_the_projection_is_that_of_a_torch_layer_and_seeded() -> None:
    draws = [random_projection(25, 4000, "kaiming-uniform", torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert float(draws[0].abs().max()) == pytest.approx(0.2, abs=1e-4)
    assert float(draws[0].std()) == pytest.approx(0.2 / 3**0.5, abs=1e-3)
    normal = random_projection(25, 4000, "normal", torch.Generator().manual_seed(0))
    assert float(normal.std()) == pytest.approx(1.0, abs=0.01)


def test_ranpac_searches_on_a_fifth_of_the_task_and_solves_with_all_sums() -> None:
    learner = Learner(tiny_model(), build_method("ranpac", {"form": "small", "random_features": 40}))
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    learner.fit(context, lambda report: None)
    head = learner.method.head
    assert isinstance(head, Ridge)
    from contune.contract.randomness import numpy_generator

    order = torch.from_numpy(numpy_generator(0, "strength", 1).permutation(48))
    h = random_features(context.passes.features(context.task.data), head._projection)
    y = torch.nn.functional.one_hot(torch.from_numpy(context.task.data.labels), 4).double()
    fit, held = order[:38], order[38:]
    errors = [float((h[held] @ ridge(h[fit], y[fit], s) - y[held]).square().mean()) for s in STRENGTHS[4:]]
    chosen = STRENGTHS[4:][int(np.argmin(errors))]
    tensors, values = head.state().tensors, head.state().values
    assert values["strength"] == chosen
    assert torch.equal(tensors["weight"], ridge_solution(tensors["gram"], tensors["targets"], chosen))
    assert tensors["counts"].tolist() == [24, 24, 24, 24]


def test_no_random_features_and_a_huge_strength_is_class_sums() -> None:
    learner = Learner(tiny_model(), build_method("ranpac", {"form": "small", "random_features": 0, "strength": 1e12}))
    learner.learn(digit_tasks()[0])
    tensors = learner.state().tensors
    assert torch.allclose(tensors["head/weight"] * 1e12, tensors["head/targets"], rtol=1e-6)


def test_a_strength_of_zero_is_least_squares_and_not_a_search() -> None:
    learner = Learner(tiny_model(), build_method("ranpac", {"form": "small", "random_features": 8, "strength": 0.0}))
    learner.learn(digit_tasks()[0])
    assert learner.state().values["head"]["strength"] == 0.0


@pytest.mark.parametrize("options", [{"expansion": -1}, {"gamma": -1.0}])
def test_negative_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="below 0"):
        build_method("acil", options)


def test_growing_by_classes_leaves_old_columns() -> None:
    learner = learned(list(digit_tasks()[:1]))
    before = learner.state().tensors["head/weight"].clone()
    context = learner.begin(digit_tasks()[1])
    head = learner.method.head
    assert isinstance(head, Ridge)
    empty = Dataset.of(digit_tasks()[1].train.take([]), learner.backbone, *(np.zeros(0, dtype=np.int64),) * 2)
    head.fit(context.with_data(empty))
    tensors = head.state().tensors
    assert torch.equal(tensors["weight"][:, :2], before)
    assert tensors["weight"][:, 2:].abs().max() == 0


def test_texts_in_unequal_tasks_and_unlearning_one() -> None:
    tasks = word_tasks((1, 3, 2))
    learner = Learner(tiny_folder("bert"), build_method("acil", {"expansion": 128}))
    for task in tasks:
        learner.learn(task)
    assert accuracy(learner, tasks) > 0.8
    learner.forget(tasks[1])
    assert accuracy(learner, [tasks[0], tasks[2]]) > 0.8
    assert not set(learner.predict(list(tasks[1].test.inputs))) & set(tasks[1].class_names)


def test_with_an_adapted_first_task_it_passes_the_common_checks() -> None:
    problems = check_method(lambda: build_method("acil", {"expansion": 64, "first_task": True}))
    assert [problem for problem in problems if problem[1]] == []
