"""Fixed augmented views: what is kept per example and view, and that it changes no number."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cut_runs import cut_back
from run_helpers import config_text, resume, run, same_run
from slow_subset import only

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.backbone.reader.images import draw_view
from contune.checks.run import digit_tasks, same_state, tiny_model
from contune.contract.data import Dataset
from contune.contract.processes import Processes
from contune.contract.settings import CacheSettings
from contune.engine.kept.cache import MemoryCache
from contune.engine.learner import Learner
from contune.engine.observer import Observer
from contune.errors import CombinationError, ConfigError
from contune.method.catalog import build_method
from contune.method.method import Method
from contune.metric.ledger import Ledger
from contune.run.config import parse_config
from contune.run.execute import start_run
from contune.stream.task import Examples

TOP_LAYER = {"adapter": {"lora": {"layers": [2]}}, "rules": [{"replay": {"size": 20, "batch_size": 8}}]}
METHODS = {
    "queries": {"name": "l2p", "pool": 4, "top": 2},
    "features": "linear-probe",
    "hidden": TOP_LAYER,
    "router": {"name": "dualprompt"},
    "teacher": {"adapter": {"lora": {"layers": [2]}}, "rules": ["distillation"]},
}


def learner(method: str | Method = "linear-probe", cache: CacheSettings | None = None, **train: object) -> Learner:
    settings = {"epochs": 4, "batch_size": 16, "lr": 5e-3, "augment": True, **train}
    return Learner(tiny_model(), method, train=settings, cache=cache)


def dataset() -> tuple[Backbone, Dataset]:
    backbone = Backbone.load(ModelConfig(path=tiny_model()))
    examples = digit_tasks()[0].train
    return backbone, Dataset.of(examples, backbone, examples.labels, np.zeros(len(examples), np.int64))


def pixels(backbone: Backbone, data: Dataset, rows: list[int]) -> torch.Tensor:
    found = backbone.collate([(data.prepared, np.array(rows))]).pixels
    assert found is not None
    return found


def test_a_view_depends_on_the_image_and_its_number_alone() -> None:
    backbone, data = dataset()
    first, second = data.viewed(0), data.viewed(1)
    whole = pixels(backbone, first, list(range(20)))
    assert torch.equal(pixels(backbone, first, [7, 3]), whole[[7, 3]])
    assert not torch.equal(pixels(backbone, second, list(range(20))), whole)
    assert not torch.equal(pixels(backbone, data, list(range(20))), whole)
    moved = Dataset.of(data.examples.take([7, 3]), backbone, data.labels[[7, 3]], data.tasks[[7, 3]])
    assert torch.equal(pixels(backbone, moved.viewed(0), [0, 1]), whole[[7, 3]])
    boxes = {draw_view(image, view) for image in data.examples.inputs[:10] for view in range(3)}
    assert len(boxes) > 25
    with pytest.raises(CombinationError, match="one batch for each view"):
        backbone.collate([(first.prepared, np.array([0])), (second.prepared, np.array([0]))])


def test_results_are_filed_under_the_view_and_found_in_another_order_of_the_labels() -> None:
    backbone, data = dataset()
    keys = {data.key, data.viewed(0).key, data.viewed(1).key}
    assert len(keys) == 3
    assert data.viewed(1) is data.viewed(1)
    other = Dataset.of(data.examples, backbone, 5 - data.labels, data.tasks)
    assert set(other.groups) == set(data.groups)
    twice = Examples([data.examples.inputs[0]] * 2, np.array([0, 1]), np.array([0, 1]), "image")
    same = Dataset.of(twice, backbone, twice.labels, twice.labels)
    assert sorted(np.concatenate(list(same.groups.values())).tolist()) == [0, 1]


@pytest.mark.parametrize("kept", only(["queries", "hidden"], METHODS))
def test_cached_and_uncached_runs_are_the_same(tmp_path: Path, kept: str) -> None:
    text = config_text(METHODS[kept], augment=True, views=2, epochs=4)
    costs, folders = [], []
    for number, on in enumerate((True, False)):
        config = parse_config(text, [f"cache.features={on}", f"cache.hidden={on}", "stream.tasks=2"])
        out = start_run(config, Path.cwd(), tmp_path / str(number), processes=Processes(), observer=Observer())
        folders.append(out)
        costs.append(json.loads((out / "results.json").read_text())["cost"])
    same_run(*folders)
    if kept in ("queries", "router"):
        assert costs[0]["examples_forward"] < costs[1]["examples_forward"]
    else:
        assert costs[0]["cache_hits"] > costs[1]["cache_hits"] == 0


@pytest.mark.parametrize("kept", only(["router"], METHODS))
def test_stopped_inside_a_task_it_goes_on_with_the_same_bits(tmp_path: Path, kept: str) -> None:
    text = config_text(METHODS[kept], augment=True, views=2, epochs=3, checkpoint_steps=4)
    whole, broken = run(text, tmp_path / "whole"), run(text, tmp_path / "broken")
    cut_back(broken)
    assert not sorted((broken / "checkpoints").iterdir())[-1].name.endswith("-00000000")
    resume(broken)
    same_run(whole, broken)


@pytest.mark.parametrize(("views", "epochs"), [(1, 4), (2, 4), (3, 4), (3, 2)])
def test_every_view_costs_one_pass_of_the_frozen_model(views: int, epochs: int) -> None:
    task = digit_tasks()[0]
    for method, plain in (("l2p", 0), ("linear-probe", 0), (build_method("ranpac", {"form": "small"}), None)):
        made = learner(method, views=views, epochs=epochs)
        made.learn(task)
        if plain is not None:
            assert made.ledger.examples_forward == len(task.train) * min(views, epochs)
    fresh = learner("l2p", epochs=epochs)
    fresh.learn(task)
    assert fresh.ledger.examples_forward == len(task.train) * epochs


def test_evaluation_and_closed_form_see_the_plain_view() -> None:
    augmented, plain = learner("nmc", views=2), learner("nmc", augment=False)
    for made in (augmented, plain):
        made.learn(digit_tasks()[0])
    assert same_state(augmented.state(), plain.state()) is None
    assert augmented.ledger.examples_forward == plain.ledger.examples_forward == len(digit_tasks()[0].train)


def test_views_differ_from_no_augmentation_and_from_fresh_views() -> None:
    states = []
    for train in ({"views": 2}, {"views": 1}, {"augment": False}, {}):
        made = learner(**train)
        made.learn(digit_tasks()[0])
        states.append(made.state())
    assert all(same_state(one, other) for i, one in enumerate(states) for other in states[:i])


def test_the_memory_limit_holds() -> None:
    memory_cache, bytes_each = MemoryCache(), 48 * 17 * 32 * 4
    cache = CacheSettings(memory_mb=1)
    made = Learner(
        tiny_model(),
        "er",
        train={"epochs": 12, "batch_size": 16, "augment": True, "views": 12},
        cache=cache,
        memory_cache=memory_cache,
        layers=[2],
    )
    made.learn(digit_tasks()[0])
    assert 0 < memory_cache.nbytes() <= 2**20 < 12 * bytes_each
    assert made.ledger.cache_hits == 48 * 12
    small = CacheSettings(memory_mb=0)
    other = Learner(tiny_model(), "er", train={"epochs": 2, "augment": True, "views": 2}, cache=small, layers=[2])
    other.learn(digit_tasks()[0])
    assert other.ledger.cache_hits == 0


def test_a_shelf_drops_what_was_used_longest_ago() -> None:
    memory_cache = MemoryCache()
    for name in "abc":
        memory_cache.keep(
            name, torch.full((2, 1), ord(name), dtype=torch.float32), {f"{name}-1": torch.tensor([1])}, 16
        )
        memory_cache.whole("a")
    assert memory_cache.whole("b") is None
    assert memory_cache.group("b-1") is None
    assert memory_cache.group("a-1") is not None
    assert memory_cache.nbytes() == 16
    memory_cache.keep("large", torch.zeros(5), {}, 16)
    assert memory_cache.whole("large") is None


@pytest.mark.parametrize(
    ("train", "sentence"),
    [({"views": 2}, "train.augment is off"), ({"views": 0, "augment": True}, "greater than or equal to 1")],
)
def test_wrong_settings_are_sentences(tmp_path: Path, train: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        run(config_text("lora", **train), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_ledger_of_views_is_written_down(tmp_path: Path) -> None:
    out = run(config_text("linear-probe", augment=True, views=2), tmp_path / "run")
    results = json.loads((out / "results.json").read_text())
    trained, tested = (sum(results["stream"][f"{part}_examples"]) for part in ("train", "test"))
    assert results["cost"]["examples_forward"] == 2 * trained + tested
    assert results["cost"]["cache_hits"] == 2 * trained
    assert pq.read_table(out / "predictions.parquet").num_rows > 0
    assert Ledger().cache_hits == 0
