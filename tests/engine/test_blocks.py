"""Features in blocks: the same bits as all at once, however they are kept, and heads that never hold a whole task."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contune.checks.run import digit_tasks, new_learner, tiny_model
from contune.checks.sizes import checked_method
from contune.contract.context import TaskView
from contune.contract.data import Dataset, Rows
from contune.contract.processes import Processes
from contune.contract.randomness import numpy_generator
from contune.contract.settings import CacheSettings, TrainSettings
from contune.engine.kept.cache import FeatureCache
from contune.engine.kept.passes import CachedPasses
from contune.engine.learner import Learner
from contune.head.solved.class_means import ClassMeans
from contune.head.solved.ridge import STRENGTHS, Ridge, RidgeSums, random_features
from contune.method.catalog import build_method
from contune.metric.ledger import Ledger
from contune.numerics.averages import class_sums
from contune.objective.classify import Classify
from contune.rule.align.statistics import Form, Gaussians, measured, measured_blocks
from contune.stream.build import load_stream
from contune.stream.config import StreamConfig
from contune.stream.task import Examples

ROWS, WIDTH, CLASSES = 200_000, 64, 10  # 49 MB of features in one task
BOUND = 30  # MB that learning such a task may add, where the features alone, in float64, would take 98
NOTHING_KEPT, ALONE = CacheSettings(features=False), Processes()


@dataclass(frozen=True)
class Features:
    """All that a closed-form head asks of its context; the features of a row are made when they are asked for."""

    rows: int
    width: int = WIDTH
    cache: CacheSettings = NOTHING_KEPT
    processes: Processes = ALONE
    lengths: tuple[int, ...] = (1,)

    @property
    def model(self) -> Any:
        backbone = SimpleNamespace(device=torch.device("cpu"))
        columns = torch.ones(1, CLASSES, dtype=torch.bool)
        own = {"backbone": backbone, "adapter_trainable": False, "feature_size": lambda: self.width}
        return SimpleNamespace(**own, objective=Classify(), class_tasks=columns)

    @property
    def passes(self) -> "Features":
        return self

    @cached_property
    def task(self) -> TaskView:
        columns, names = tuple(range(CLASSES)), tuple(map(str, range(CLASSES)))
        return TaskView(0, "", columns, 0, CLASSES, "class-incremental", names, self.dataset, TrainSettings())

    @cached_property
    def feature_cache(self) -> FeatureCache:
        return FeatureCache(self.cache, Ledger(), self.processes)

    @cached_property
    def dataset(self) -> Dataset:
        ids = np.arange(self.rows)
        labels = ids * 7 % CLASSES
        prepared: Any = SimpleNamespace(lengths=np.resize(np.array(self.lengths), self.rows))
        return Dataset(Examples(range(self.rows), labels, ids, "text"), prepared, labels, np.zeros_like(labels))  # type: ignore[arg-type]

    def made(self, rows: Rows) -> Tensor:
        """As real features do, they depend in their last bits on the batch that they are computed in."""
        generator = torch.Generator().manual_seed(int(rows[0]))
        drawn = torch.randn(len(rows), self.width, generator=generator)
        return drawn + torch.from_numpy(self.dataset.labels[rows]).unsqueeze(1) / 3

    def features(self, name: str | None) -> Tensor:
        return self.feature_cache.features(self.dataset, name, self.width, self.made)

    def blocks(self, name: str | None, count: int) -> Iterator[tuple[Rows, Tensor]]:
        return self.feature_cache.feature_blocks(self.dataset, name, self.width, self.made, count)

    def some(self, name: str | None, rows: Rows) -> Tensor:
        return self.feature_cache.rows(self.dataset, name, self.width, self.made, rows)

    def feature_blocks(self, dataset: Dataset) -> Iterator[tuple[Rows, Tensor]]:
        return self.feature_cache.feature_blocks(dataset, None, self.width, self.made)


def together(blocks: Iterator[tuple[Rows, Tensor]], most: int) -> tuple[Tensor, list[list[int]]]:
    """All blocks as one matrix in the order of the rows, and which rows each block had."""
    found = [(rows, values) for rows, values in blocks]
    assert all(len(rows) == len(values) <= most and (np.diff(rows) > 0).all() for rows, values in found)
    places = np.concatenate([rows for rows, _ in found])
    assert sorted(places.tolist()) == list(range(len(places)))
    return torch.cat([values for _, values in found])[torch.from_numpy(np.argsort(places))], [
        rows.tolist() for rows, _ in found
    ]


@pytest.mark.parametrize("lengths", [(1,), (3, 9, 4, 4, 1)])
def test_blocks_are_the_features_to_the_bit_however_they_are_kept(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    caches = {
        "memory": CacheSettings(batch_size=7),
        "folder": CacheSettings(batch_size=7, memory_mb=0, folder=str(tmp_path)),
        "folder again": CacheSettings(batch_size=7, memory_mb=0, folder=str(tmp_path)),
        "too large": CacheSettings(batch_size=7, memory_mb=0),
        "off": CacheSettings(batch_size=7, features=False),
    }
    whole = Features(333, 5, caches["off"], lengths=lengths).features("features-a")
    orders = []
    for kind, cache in caches.items():
        work = Features(333, 5, cache, lengths=lengths)
        found, order = together(work.blocks("features-a", 50), 50)
        assert torch.equal(found, whole), kind
        assert (work.feature_cache.ledger.examples_forward == 0) == (kind == "folder again")
        assert len(order) > 4
        orders.append(order)
    assert all(order == orders[0] for order in orders)
    assert len(list(tmp_path.iterdir())) == CLASSES


@pytest.mark.parametrize("kind", ["memory", "folder", "too large", "off"])
def test_rows_are_those_of_the_features_to_the_bit_however_they_are_kept(tmp_path: Path, kind: str) -> None:
    folder = str(tmp_path) if kind == "folder" else None
    limit, features = 0 if kind in ("folder", "too large") else 2048, kind != "off"
    work = Features(
        333, 5, CacheSettings(batch_size=7, memory_mb=limit, folder=folder, features=features), lengths=(3, 9, 4)
    )
    rows = np.array([332, 7, 7, 0, 120])
    assert torch.equal(work.some("features-a", rows), work.features("features-a")[torch.from_numpy(rows)])
    assert torch.equal(work.some(None, rows), work.features(None)[torch.from_numpy(rows)])
    assert work.some("features-a", rows[:0]).shape == (0, 5)


def test_rows_in_a_folder_are_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CacheSettings(batch_size=7, memory_mb=0, folder=str(tmp_path))
    first, second = Features(333, 5, cache), Features(333, 5, cache)
    whole, rows = first.features("features-a"), np.array([5, 300])
    monkeypatch.setattr(FeatureCache, "features", lambda *_: pytest.fail("all rows were asked for"))
    found = [second.some("features-a", rows) for _ in range(3)]
    assert all(torch.equal(one, whole[torch.from_numpy(rows)]) for one in found)
    assert second.feature_cache.ledger.examples_forward == second.feature_cache.memory_cache.nbytes() == 0


def test_without_a_name_the_batches_are_those_of_all_labels_together() -> None:
    work = Features(333, 5, CacheSettings(batch_size=7), lengths=(3, 9, 4))
    found, _ = together(work.blocks(None, 50), 50)
    assert torch.equal(found, work.features(None))
    assert not torch.equal(found, work.features("features-a"))  # other batches, other bits


def test_one_block_comes_in_the_order_of_the_rows() -> None:
    (rows, values), *others = Features(90, 5, CacheSettings(batch_size=7), lengths=(3, 9)).blocks("features-a", 2048)
    assert rows.tolist() == list(range(90))
    assert values.shape == (90, 5)
    assert not others


def test_no_examples_make_no_blocks() -> None:
    assert list(Features(0).blocks("features-a", 5)) == list(Features(0).blocks(None, 5)) == []


def test_a_block_is_computed_when_it_is_asked_for_and_not_before() -> None:
    work = Features(1000, 5)
    blocks = work.blocks("features-a", 128)
    next(blocks)
    assert work.feature_cache.ledger.examples_forward <= 128
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", ["off", "memory", "folder", "one sees the folder first"])
def test_two_processes_share_the_blocks(tmp_path: Path, kind: str) -> None:
    caches = {"off": CacheSettings(features=False, batch_size=7), "memory": CacheSettings(batch_size=7)}
    cache = caches.get(kind, CacheSettings(memory_mb=0, folder=str(tmp_path), batch_size=7))
    barrier, shared = Barrier(2), {}

    class Sum:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def reduce(self, values: Tensor, reduction: str) -> Tensor:
            assert reduction == "sum"
            shared[self.rank] = values.clone()
            barrier.wait(20)
            total: Tensor = shared[0] + shared[1]
            barrier.wait(20)
            return total

    found: dict[int, Tensor] = {}
    works = [Features(333, 5, cache, Processes(rank, 2, Sum(rank))) for rank in range(2)]

    def share(rank: int) -> None:
        found[rank], _ = together(works[rank].blocks("features-a", 50), 50)

    if kind == "one sees the folder first":  # as when another run writes between the looks of the two
        Features(333, 5, cache).features("features-a")
        object.__setattr__(works[0].feature_cache, "_find", lambda *_: None)
    if cache.folder:  # threads of one process would write under the same temporary name
        for work in works:
            object.__setattr__(work.feature_cache._folder, "write", lambda *_: None)
    threads = [Thread(target=share, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    alone = Features(333, 5, CacheSettings(features=False, batch_size=7)).features("features-a")
    assert torch.equal(found[0], alone)
    assert torch.equal(found[1], alone)
    counted = [work.feature_cache.ledger.examples_forward for work in works]
    assert sum(counted) == 333
    assert min(counted) > 100


def in_blocks_of(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every block of this test so small."""
    whole, through = CachedPasses.feature_blocks, CachedPasses.module_blocks
    monkeypatch.setattr(CachedPasses, "feature_blocks", lambda self, data: whole(self, data, count))
    monkeypatch.setattr(
        CachedPasses, "module_blocks", lambda self, data, module, _=0: through(self, data, module, count)
    )


@pytest.mark.parametrize("name", ["nmc", "ranpac", "acil", "aper", "ease", "sotu", "slca", "mos"])
def test_a_recipe_learns_the_same_from_small_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states, scores = [], []
    for small in (False, True):
        with monkeypatch.context() as patch:
            if small:
                in_blocks_of(20, patch)
            learner = new_learner(checked_method(name), cache=CacheSettings(batch_size=6))
            for task in digit_tasks()[:2]:
                learner.learn(task)
            data = learner.test_dataset(digit_tasks()[0])
            scores.append(learner.reading(data).passes.logits(data))
            states.append(learner.state())
    assert torch.allclose(scores[0], scores[1], rtol=1e-6, atol=1e-6)
    assert {**states[0].values, "head": None} == {**states[1].values, "head": None}
    first, second = (state.inner("head").values for state in states)
    assert {**first, "searches": None} == {**second, "searches": None}
    for one, other in zip(first.get("searches", ()), second.get("searches", ()), strict=True):
        assert one[:2] == other[:2]
        assert one[2] == pytest.approx(other[2], rel=1e-9)  # the error of a search is a sum over blocks
    exact = name in ("nmc", "ease", "aper")  # sums of one class come in the same order
    for key, value in states[0].tensors.items():
        if exact or not value.numel():
            assert torch.equal(states[1].tensors[key], value), key
        else:
            assert (states[1].tensors[key] - value).abs().max() <= 1e-9 * value.abs().max(), key


@pytest.mark.parametrize("name", ["nmc", "lora", "aper", "ease", "l2p"])
def test_blocks_of_a_context_are_its_features_while_it_learns_and_when_it_answers(name: str) -> None:
    learner = new_learner(build_method(name, {}), cache=CacheSettings(batch_size=6))
    for task in digit_tasks()[:2]:
        context = learner.begin(task)
        learner.fit(context, lambda report: None)
        for ready in (context, learner.resting(context)):
            found, order = together(ready.passes.feature_blocks(ready.task.data, 20), 20)
            assert torch.equal(found, ready.passes.features(ready.task.data))
            assert len(order) > 1
            for module in range(ready.model.modules.modules() if ready.model.modules is not None else 0):
                found, _ = together(ready.passes.module_blocks(ready.task.data, module, 20), 20)
                assert torch.equal(found, ready.passes.module_features(ready.task.data, module))
        learner.end(context)
    data = learner.test_dataset(digit_tasks()[0])
    reading = learner.reading(data)
    assert torch.equal(together(reading.passes.feature_blocks(data, 20), 20)[0], reading.passes.features(data))


def direct_choice(h: Tensor, y: Tensor, order: Rows) -> float:
    """The search as it is defined: errors of all held-out rows, one by one."""
    cut = int(0.8 * len(order))
    fit, held = torch.from_numpy(order[:cut]), torch.from_numpy(order[cut:])
    values, vectors = torch.linalg.eigh(h[fit].T @ h[fit])
    errors = []
    for strength in STRENGTHS:
        weight = vectors @ ((vectors.T @ (h[fit].T @ y[fit])) / (values.clamp(min=0) + strength).unsqueeze(1))
        errors.append(float((h[held] @ weight - y[held]).square().mean()))
    return STRENGTHS[int(np.argmin(errors))]


@pytest.mark.parametrize("features", [0, 64, 600])
@pytest.mark.parametrize("tasks", [1, 5])
def test_the_strength_that_ranpac_chooses_on_digits_is_that_of_the_definition(features: int, tasks: int) -> None:
    """All digits: at 600 features, the first of five tasks has fewer rows than features and their only task has more."""
    learner = Learner(tiny_model(), build_method("ranpac", {"form": "small", "random_features": features}))
    for index, task in enumerate(load_stream(StreamConfig(data="digits", tasks=tasks)).tasks[:2]):
        context = learner.begin(task)
        learner.fit(context, lambda report: None)
        head = learner.method.head
        assert isinstance(head, Ridge)
        h = random_features(context.passes.features(context.task.data), head._projection)
        y = torch.nn.functional.one_hot(torch.from_numpy(context.task.data.labels), context.task.seen).double()
        order = numpy_generator(0, "strength", index).permutation(len(h))
        assert head.state().values["strength"] == direct_choice(h, y, order)
        learner.end(context)


def test_sums_of_the_held_out_rows_say_their_error() -> None:
    generator = torch.Generator().manual_seed(0)
    h, y, weight = (torch.randn(shape, generator=generator).double() for shape in ((50, 6), (50, 3), (6, 3)))
    sums = RidgeSums.empty(6, 3)
    for rows in torch.split(torch.arange(50), 8):
        sums.add(h[rows], y[rows])
    assert sums.error(weight) == pytest.approx(float((h @ weight - y).square().sum()), rel=1e-12)


def test_the_sums_of_a_searched_and_of_a_given_strength_agree() -> None:
    work = Features(5000, 6, lengths=(2, 5))
    heads = [Ridge(random_features=30), Ridge(random_features=30, strength=1.0)]
    for head in heads:
        head.begin_task(work)  # type: ignore[arg-type]
        head.fit(work)  # type: ignore[arg-type]
    first, second = (head.state().tensors for head in heads)
    for name in ("gram", "targets", "counts"):
        assert torch.allclose(first[name], second[name], rtol=1e-12)
    h = random_features(work.features(None), heads[0]._projection)
    assert torch.allclose(first["gram"], h.T @ h, rtol=1e-12)


def spreads(found: Gaussians) -> Tensor:
    """The covariances, whatever their form; signs of factors are free."""
    if found.form != "low-rank":
        return found.spreads
    return found.spreads.mT @ found.spreads + found.rest[:, None, None] * torch.eye(found.means.shape[1])


@pytest.mark.parametrize("form", ["full", "diagonal", "low-rank", "shared"])
def test_statistics_of_blocks_are_those_of_all_rows(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Features(700, 5, CacheSettings(batch_size=7, features=False), lengths=(3, 9, 4))
    labels, tasks = torch.from_numpy(work.dataset.labels), torch.arange(700) // 400
    whole = measured(work.features(None), labels, tasks, form, 2)
    for most in (2048, 16, 1):
        monkeypatch.setattr("contune.rule.align.statistics.MOST_ROWS", most)
        found = measured_blocks(work.blocks(None, 50), labels, tasks, form, 2)
        for name in ("counts", "labels", "tasks"):
            assert torch.equal(getattr(found, name), getattr(whole, name))
        for one, other in ((found.means, whole.means), (spreads(found), spreads(whole)), (found.rest, whole.rest)):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


class Greedy:
    """Planted fault: a head that asks for all features at once."""

    def __init__(self) -> None:
        self.sums = torch.zeros(0)

    def begin_task(self, context: Features) -> None:
        del context

    def fit(self, context: Features) -> None:
        self.sums, _ = class_sums(context.passes.features(None), torch.from_numpy(context.task.data.labels), CLASSES)


def peaks() -> dict[str, float]:
    """MB that the process grew by while each head learned a large task; the greedy one last."""
    heads: dict[str, Any] = {
        "nmc": ClassMeans(),
        "acil": Ridge(random_features=128, strength=1.0),
        "ranpac": Ridge(random_features=128),
        "greedy": Greedy(),
    }
    for head in heads.values():  # what is loaded at the first use is not counted
        small = Features(4000)
        head.begin_task(small)
        head.fit(small)
    work = Features(ROWS)
    work.dataset.groups  # noqa: B018  computed once and kept
    before, found = most_megabytes(), {}
    for name in ("nmc", "acil", "ranpac", "statistics", "greedy"):
        if name == "statistics":
            labels = torch.from_numpy(work.dataset.labels)
            measured_blocks(work.feature_blocks(work.dataset), labels, torch.zeros_like(labels), "full")
        else:
            heads[name].fit(work)
        found[name] = most_megabytes() - before
    return found


def most_megabytes() -> float:
    """The most that this process ever held; its `ru_maxrss` would begin with that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of a process as Linux tells it")
def test_a_large_task_takes_no_more_memory_than_blocks_and_the_greedy_head_does() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    greedy = found.pop("greedy")
    assert max(found.values()) < BOUND, found
    assert greedy > 3 * BOUND, greedy


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(peaks()))
