"""EASE: what its card says must hold, and the whole of it against plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from resume_helpers import go_on, learn_keeping
from torch import Tensor
from torch.nn import functional
from word_tasks import tiny_folder, word_tasks

from contune.adapter.bottleneck.per_task import BottleneckPerTask
from contune.adapter.bottleneck.single import Bottleneck
from contune.checks.common import check_method
from contune.checks.run import SETTINGS, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.engine.learner import Learner
from contune.errors import CombinationError
from contune.head.solved.class_means import ClassMeans
from contune.head.solved.subspace_means import SubspaceMeans, completed_means, similarity_weights, subspace_scores
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.stream.task import Examples, Kind, Task


def ease_learner(kind: Kind = "class-incremental", **options: Any) -> Learner:
    """EASE with a rate that moves the tiny model's adapters well."""
    method = build_method("ease", {"size": 8, **options})
    return Learner(tiny_model(), method, kind=kind, train={**SETTINGS, "lr": 5.0})


def learned(tasks: list[Task] | None = None, **options: Any) -> Learner:
    learner = ease_learner(**options)
    for task in tasks or digit_tasks():
        learner.learn(task)
    return learner


def reading(learner: Learner) -> Context:
    return learner.reading(None)


def class_data(learner: Learner, task: Task) -> tuple[Any, Tensor]:
    dataset = learner.context([task], 0).task.data
    return dataset, torch.from_numpy(dataset.labels)


def random_means(classes: int, blocks: int, width: int = 4) -> Tensor:
    return torch.randn(classes, blocks, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# The formulas


def test_shares_sum_to_one_and_follow_similarity() -> None:
    shares = similarity_weights(random_means(5, 1)[:, 0], random_means(7, 1)[:, 0])
    assert torch.allclose(shares.sum(dim=1), torch.ones(5, dtype=torch.float64))
    assert bool((shares > 0).all())
    by_hand = similarity_weights(torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 0.0], [0.0, 1.0]]))
    e = float(np.e)
    assert torch.allclose(by_hand, torch.tensor([[e / (e + 1), 1 / (e + 1)]]))


def test_a_stand_in_lies_among_the_means_it_is_made_of() -> None:
    means, owners = random_means(5, 3), torch.tensor([0, 0, 1, 2, 2])
    known = owners.unsqueeze(1) >= torch.arange(3)
    full = completed_means(means * known.unsqueeze(2), known, owners)
    assert torch.equal(full[known], means[known])
    for row, block in (~known).nonzero().tolist():
        donors = means[known[:, block], block]
        assert bool((full[row, block] <= donors.amax(dim=0)).all())
        assert bool((full[row, block] >= donors.amin(dim=0)).all())
        owner = int(owners[row])
        shares = similarity_weights(means[row : row + 1, owner], means[known[:, block], owner])
        assert torch.allclose(full[row, block], (shares @ donors)[0])


def test_scores_by_hand() -> None:
    """Two classes, three blocks: cosines 1, 0, -1 for the first and 0, 1, 1 for the second."""
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    means = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], [[0.0, 1.0], [4.0, 0.0], [5.0, 0.0]]])
    found = subspace_scores(features, means, torch.tensor([0, 2]), 0.5)
    assert torch.allclose(found, torch.tensor([[1 + 0.25 * (0 - 1), 1 + 0.25 * (0 + 1)]]))


def test_without_alpha_the_other_blocks_play_no_part() -> None:
    features, means, owners = random_means(6, 3), random_means(4, 3), torch.tensor([0, 1, 2, 2])
    blurred = means.clone()
    for row, owner in enumerate(owners.tolist()):
        others = [block for block in range(3) if block != owner]
        blurred[row, others] = -3 * blurred[row, others].roll(1, dims=1)
    assert torch.equal(subspace_scores(features, means, owners, 0.0), subspace_scores(features, blurred, owners, 0.0))
    changed = subspace_scores(features, blurred, owners, 0.1)
    assert not torch.allclose(subspace_scores(features, means, owners, 0.1), changed, atol=1e-3)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_with_equal_blocks_the_score_is_a_multiple_of_the_cosine(alpha: float) -> None:
    features, means, owners = (
        x.expand(-1, 3, -1) for x in (random_means(6, 1), random_means(4, 1), random_means(4, 1))
    )
    owners = torch.tensor([0, 1, 1, 2])
    cosine = functional.normalize(features[:, 0], dim=1) @ functional.normalize(means[:, 0], dim=1).T
    assert torch.allclose(subspace_scores(features, means, owners, alpha), (1 + alpha) * cosine)


# The method


def test_finished_modules_keep_every_bit() -> None:
    learner, kept = ease_learner(), []
    for task in digit_tasks():
        learner.learn(task)
        probe = learner.test_dataset(digit_tasks()[0])
        modules = range(learner.method.adapter.modules())
        kept.append([reading(learner).passes.module_features(probe, module) for module in modules])
    assert [len(features) for features in kept] == [1, 2, 3]
    for earlier, later in ((0, 1), (0, 2), (1, 2)):
        for before, now in zip(kept[earlier], kept[later], strict=False):
            assert torch.equal(before, now)
        assert (kept[2][earlier] - kept[2][later]).abs().max() > 0.05, "the modules must differ"
    assert learner.base_unchanged()


def test_one_task_is_an_adapter_with_cosine_prototypes() -> None:
    task = digit_tasks()[0]
    adapter = Bottleneck(size=8, dropout=0.1)
    alone = Method(adapter, ClassMeans(auxiliary="cosine"), adapt="first-task", train=build_method("ease", {}).train)
    single = Learner(tiny_model(), alone, train={**SETTINGS, "lr": 5.0})
    single.learn(task)
    ease = learned([task])
    for name, value in adapter.trained().items():
        assert torch.equal(ease.method.adapter.trained()[f"task0.{name}"], value)
    scores = [reading(learner).passes.logits(learner.test_dataset(task)) for learner in (single, ease)]
    assert torch.equal(*scores)


def by_plain_loops(learner: Learner, tasks: list[Task], dataset: Any, alpha: float) -> Tensor:
    """Scores of the whole method, from features alone, for tasks of disjoint classes."""
    context, blocks = reading(learner), len(tasks)
    means: dict[tuple[int, int], Tensor] = {}
    owner: dict[int, int] = {}
    for number, task in enumerate(tasks):
        data, labels = class_data(learner, task)
        for block in range(number + 1):
            features = context.passes.module_features(data, block).double()
            for column in labels.unique().tolist():
                means[column, block] = features[labels == column].mean(dim=0)
                owner[column] = number
    real = dict(means)
    cosine = functional.cosine_similarity
    for old in owner:
        for block in range(owner[old] + 1, blocks):
            new = [column for column in owner if owner[column] >= block]
            logits = torch.stack([cosine(real[old, owner[old]], real[j, owner[old]], dim=0) for j in new])
            share = logits.exp() / logits.exp().sum()
            means[old, block] = sum(share[k] * real[j, block] for k, j in enumerate(new))  # type: ignore[assignment]
    features = [context.passes.module_features(dataset, block).double() for block in range(blocks)]
    columns = []
    for column in range(len(owner)):
        score = cosine(features[owner[column]], means[column, owner[column]].unsqueeze(0), dim=1)
        for block in range(blocks):
            if block != owner[column]:
                score = score + alpha / (blocks - 1) * cosine(features[block], means[column, block].unsqueeze(0), dim=1)
        columns.append(score)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_scores_are_those_of_plain_loops(alpha: float) -> None:
    learner = learned(alpha=alpha)
    dataset = learner.test_dataset(digit_tasks()[1])
    expected = by_plain_loops(learner, list(digit_tasks()), dataset, alpha)
    found = reading(learner).passes.logits(dataset)
    assert torch.allclose(found.double(), expected, atol=1e-6)
    if alpha == 1.0:
        off = by_plain_loops(learner, list(digit_tasks()), dataset, 0.1)
        assert not torch.allclose(found.double(), off, atol=1e-3), "another alpha would be seen"


@pytest.mark.parametrize("dim", [None, 0])
def test_wrong_shares_would_be_caught(monkeypatch: pytest.MonkeyPatch, dim: int | None) -> None:
    """Planted faults: equal shares, and a softmax along the wrong side, give other scores than the plain loops."""

    def wrong(old: Tensor, new: Tensor) -> Tensor:
        cosines = functional.normalize(old, dim=1) @ functional.normalize(new, dim=1).T
        return torch.full_like(cosines, 1 / len(new)) if dim is None else cosines.softmax(dim=dim)

    monkeypatch.setattr("contune.head.solved.subspace_means.similarity_weights", wrong)
    learner = learned(alpha=1.0)
    dataset = learner.test_dataset(digit_tasks()[1])
    expected = by_plain_loops(learner, list(digit_tasks()), dataset, 1.0)
    assert not torch.allclose(reading(learner).passes.logits(dataset).double(), expected, atol=1e-6)


def test_texts_in_tasks_of_unequal_size_are_those_of_plain_loops() -> None:
    tasks = word_tasks((1, 3, 2))
    train = {"epochs": 4, "batch_size": 8, "lr": 0.1}
    learner = Learner(tiny_folder("bert"), "ease", size=8, train=train)
    for task in tasks:
        learner.learn(task)
    for task in tasks:
        dataset = learner.test_dataset(task)
        expected = by_plain_loops(learner, tasks, dataset, 0.1)
        assert torch.allclose(reading(learner).passes.logits(dataset).double(), expected, atol=1e-6)
    right = np.concatenate([learner.answers(d) == d.labels for d in map(learner.test_dataset, tasks)])
    assert right.mean() > 0.5
    assert learner.base_unchanged()


def test_a_class_that_comes_back_keeps_its_owner_and_adds_to_its_means() -> None:
    first, second, _ = digit_tasks()
    back = Task("back", (first.class_names[1],), one_class(first.train, 1), one_class(first.test, 1))
    learner = learned([first, second, back])
    state = learner.state().tensors
    assert state["head/owners"].tolist() == [0, 0, 1, 1]
    expected = [[24, 0, 0], [48, 24, 24], [24, 24, 0], [24, 24, 0]]
    assert state["head/counts"].tolist() == expected
    data, labels = class_data(learner, first)
    features = reading(learner).passes.module_features(data, 2).double()
    mean = state["head/sums"][1, 2] / 24
    assert torch.allclose(mean, features[labels == 1].mean(dim=0), atol=1e-6)
    assert bool(torch.isfinite(reading(learner).passes.logits(learner.test_dataset(first))).all())


def one_class(examples: Examples, label: int) -> Examples:
    chosen = examples.take(np.flatnonzero(examples.labels == label))
    return Examples(chosen.inputs, chosen.labels * 0, chosen.ids, chosen.modality)


def test_training_sees_the_tasks_own_classes_and_its_own_module() -> None:
    learner = learned(list(digit_tasks()[:2]))
    context = learner.begin(digit_tasks()[2])
    names = {name.split(".")[1] for name in context.model.trained() if name.startswith("adapter.")}
    assert names == {"task2"}
    mask = context.model.class_mask(torch.tensor([2]))
    assert mask.tolist() == [[False] * 4 + [True] * 2]
    rows = np.arange(3)
    batch = context.passes.batch([(context.task.data, rows)])
    expected = context.passes.module_features(context.task.data, 2)[:3]
    assert torch.allclose(context.model.forward(batch).features, expected, atol=1e-5)


def test_resumes_inside_the_third_task() -> None:
    whole = learned(list(digit_tasks()[:2]), dropout=0.3)
    halfway = learn_keeping(whole, digit_tasks()[2], step=4)
    again = ease_learner(dropout=0.3)
    go_on(again, halfway)
    assert same_state(whole.state(), again.state()) is None
    data = whole.test_dataset(digit_tasks()[0])
    assert torch.equal(reading(whole).passes.logits(data), reading(again).passes.logits(data))


def test_features_of_finished_modules_are_computed_once() -> None:
    learner = learned()
    data = learner.test_dataset(digit_tasks()[0])
    learner.answers(data)
    before = learner.ledger.examples_forward
    learner.answers(data)
    assert learner.ledger.examples_forward == before


def test_where_the_task_is_named_its_module_alone_answers() -> None:
    learner = learned(kind="task-incremental")
    assert learner.state().tensors["head/sums"].shape == (6, 3, 32)
    for number, task in enumerate(digit_tasks()):
        data = learner.test_dataset(task, number)
        context = reading(learner)
        train, labels = class_data(learner, task)
        of_task = context.passes.module_features(train, number).double()
        means = torch.stack([of_task[labels == column].mean(dim=0) for column in learner.columns(task)])
        features = context.passes.module_features(data, number).double()
        expected = functional.normalize(features, dim=1) @ functional.normalize(means, dim=1).T
        found = context.passes.logits(data)[:, list(learner.columns(task))].double()
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("form", ["houlsby", "pfeiffer"])
def test_other_forms_pass_the_common_checks(form: str) -> None:
    def make() -> Method:
        options = {"size": 4, "form": form, "layers": [1, 2]}
        return compose({"adapter": {"bottleneck-per-task": options}, "head": {"subspace-means": {"alpha": 1.0}}})

    assert [problem for problem in check_method(make) if problem[1]] == []


def test_rest_after_the_first_task_adds_no_module() -> None:
    method = Method(BottleneckPerTask(size=4), SubspaceMeans(), adapt="first-task")
    learner = Learner(tiny_model(), method, train=SETTINGS)
    for task in digit_tasks():
        learner.learn(task)
    assert learner.method.adapter.modules() == 1
    assert learner.state().tensors["head/owners"].tolist() == [0] * 6


@pytest.mark.parametrize("adapter", ["lora", {"with-base": {"adapter": "bottleneck"}}])
def test_adapters_without_a_frozen_module_per_task_are_refused(adapter: Any) -> None:
    with pytest.raises(CombinationError, match="bottleneck-per-task"):
        compose({"adapter": adapter, "head": "subspace-means"})


def test_tasks_learned_together_share_a_module() -> None:
    first, second, third = digit_tasks()
    learner = ease_learner()
    learner.learn([first, second])
    learner.learn(third)
    adapter = learner.method.adapter
    assert adapter.modules() == 2
    assert adapter.routes(torch.tensor([0, 1, 2])).tolist() == [0, 0, 1]
