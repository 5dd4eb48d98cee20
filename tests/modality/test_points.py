"""A modality of its own in one file: points in the plane, from two columns of a CSV file, read by a tiny transformer.

Nothing else knows of it: a stream, a learner, a replay buffer and a run's predictions take it as they take images.
"""

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from contune import Learner, Stream
from contune.backbone.assemble import Assembly, forward_function, probe
from contune.backbone.base import base_tensors
from contune.backbone.config import ModelConfig
from contune.backbone.reader.inputs import ModelInputs, Prepared, PreparedItems, Reader, Rows, gather
from contune.contract.data import inputs_hash
from contune.contract.state import examples_from_state, examples_state
from contune.errors import ConfigError, DataError
from contune.method import catalog, rooms
from contune.stream import DataConfig, StreamConfig, load_stream, modality, read_inputs
from contune.stream.inputs import Inputs
from contune.stream.modality import Arrays, Content, Modality, as_bytes, find_modality
from contune.stream.task import Examples


@final
class Points(Modality):
    """A point (2,) in float32."""

    name = "points"
    noun = "points"
    input_name = "input_values"
    columns = ("x", "y")

    def find(self, columns: Sequence[str], binary: Sequence[str]) -> tuple[str, ...] | None:
        return self.columns if set(self.columns) <= set(columns) else None

    def holds(self, value: object) -> bool:
        return isinstance(value, np.ndarray) and value.shape == (2,)

    def refuse(self, value: Any, columns: str) -> str | None:
        try:
            good = np.isfinite([float(number) for number in value]).all()
        except (TypeError, ValueError):
            good = False
        return None if good else f"the point ({columns}) is no pair of numbers"

    def pack(self, value: Any) -> bytes:
        return np.array([float(number) for number in value], dtype=np.float32).tobytes()

    def decode(self, value: Any) -> NDArray[np.float32]:
        return np.frombuffer(value, dtype=np.float32) if isinstance(value, bytes) else value

    def content(self, item: Any) -> Content:
        return Content(as_bytes(item), item.shape)

    def state(self, inputs: Sequence[Any]) -> tuple[Arrays, Mapping[str, Any]]:
        return {"points": np.array(list(inputs), dtype=np.float32).reshape(-1, 2)}, {}

    def from_state(self, arrays: Arrays, values: Mapping[str, Any]) -> list[Any]:
        return list(arrays["points"])

    def example(self) -> NDArray[np.float32]:
        return np.zeros(2, dtype=np.float32)

    def processor(self, where: str, local: bool) -> None:
        return None

    def assemble(self, config: ModelConfig, model: Any, processor: Any, where: str, local: bool) -> Assembly:
        forward, blank = forward_function(model, {}), torch.zeros(1, 2, 1)
        states, anatomy, prompt_width = probe(model, forward, input_values=blank)
        return Assembly(
            model=model,
            modality=self.name,
            input_name="input_values",
            feature="mean",
            width=states.shape[2],
            prompt_width=prompt_width,
            leading=0,
            anatomy=anatomy,
            reader=PointReader(states.shape[1], model.device),
            forward=forward,
            tensors=base_tensors(model),
            position_limit=None,
            blank=blank,
            device=model.device,
        )


@final
@dataclass(frozen=True, eq=False)
class PointReader(Reader):
    positions: int
    device: torch.device

    def description(self) -> str:
        return "points"

    def prepare(self, inputs: Inputs) -> PreparedItems:
        return PreparedItems(inputs, self.positions)

    def collate(
        self, parts: Sequence[tuple[Prepared, Rows]], *, augment: torch.Generator | None, pixels: bool
    ) -> ModelInputs:
        pairs = gather(parts, PreparedItems)
        values = torch.from_numpy(np.stack([prepared.items[row] for prepared, row in pairs]))
        return ModelInputs(len(pairs), pixels=values.unsqueeze(2).to(self.device) if pixels else None)


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    catalog.add_plugin(sys.modules[__name__])
    yield
    rooms.plugins.remove(sys.modules[__name__])
    modality._plugins.remove(sys.modules[__name__])
    for cached in (modality.modalities, catalog.recipes, catalog.parts):
        cached.cache_clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import ASTConfig, ASTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    grid = {"patch_size": 1, "frequency_stride": 1, "time_stride": 1, "max_length": 2, "num_mel_bins": 1}
    folder = tmp_path_factory.mktemp("model")
    made = ASTModel(ASTConfig(**sizes, **grid, initializer_range=0.5))
    torch.nn.init.normal_(made.embeddings.position_embeddings)  # zeros would make (x, y) and (y, x) the same
    made.save_pretrained(folder)
    return str(folder)


CENTRES = {"north": (0, 3), "east": (3, 0), "south": (0, -3), "west": (-3, 0)}


def write_points(path: Path, count: int, seed: int) -> Path:
    random = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "label"])
        for at in range(count):
            name = list(CENTRES)[at % 4]
            writer.writerow([*(np.array(CENTRES[name]) + random.normal(0, 0.4, 2)).tolist(), name])
    return path


def stream_of_points(folder: Path) -> Stream:
    train, test = write_points(folder / "train.csv", 80, 0), write_points(folder / "test.csv", 40, 1)
    return load_stream(StreamConfig(data=DataConfig(train=str(train), test=str(test)), tasks=2))


@pytest.mark.parametrize("method", ["nmc", "er"])
def test_points_are_learned_and_answered(method: str, model: str, tmp_path: Path) -> None:
    stream = stream_of_points(tmp_path)
    assert (stream.modality, len(stream.tasks[0].train)) == ("points", 40)
    assert stream.tasks[0].train.inputs[0].dtype == np.float32
    learner = Learner(model, method=method, train={"epochs": 3, "lr": 0.01} if method == "er" else {})
    for task in stream.tasks:
        learner.learn(task)
    found = read_inputs(tmp_path / "test.csv")
    assert found.modality == "points"
    right = [list(CENTRES)[at % 4] for at in range(40)]
    share = np.mean([one == two for one, two in zip(learner.predict(found.inputs), right, strict=True)])
    assert share > 0.9
    state = learner.state()
    again = Learner(model, method=method, train={"epochs": 3, "lr": 0.01} if method == "er" else {})
    again.load_state(state)
    assert again.predict(found.inputs) == learner.predict(found.inputs)


def test_points_are_hashed_and_stored(tmp_path: Path) -> None:
    train = stream_of_points(tmp_path).tasks[0].train
    kept = examples_from_state(examples_state(train))
    assert kept.modality == "points"
    assert kept.content_hash() == train.content_hash()
    moved = Examples([point + 1 for point in kept.inputs], kept.labels, kept.ids, "points")
    assert moved.content_hash() != kept.content_hash()
    assert inputs_hash(moved, np.arange(2)) != inputs_hash(kept, np.arange(2)) == inputs_hash(train, np.arange(2))


def test_a_row_that_is_no_point_is_named(tmp_path: Path) -> None:
    train, test = (write_points(tmp_path / name, 8, 0) for name in ("train.csv", "test.csv"))
    train.write_text(train.read_text() + "1.5,here,north\n")
    config = {"data": {"train": str(train), "test": str(test)}, "tasks": 1}
    with pytest.raises(DataError, match=r"train\.csv, line 10: the point \(columns 'x', 'y'\) is no pair of numbers"):
        load_stream(StreamConfig.model_validate(config))
    named = {**config, "data": {**config["data"], "input": {"points": ["x", "z"]}}}  # type: ignore[dict-item]
    with pytest.raises(DataError, match="has no column 'z' for the points"):
        load_stream(StreamConfig.model_validate(named))


def test_points_are_refused_where_something_else_is_read(model: str, tmp_path: Path) -> None:
    learner = Learner(model, method="nmc")
    texts = Examples(["a"], np.zeros(1, np.int64), np.zeros(1, np.int64), "text")
    task = stream_of_points(tmp_path).tasks[0]
    with pytest.raises(ConfigError, match=r"holds text examples but .* reads points"):
        learner.learn(type(task)("t", ("a",), texts, texts))
    with pytest.raises(ConfigError, match=r"model\.image_size is 64 but .* reads points; leave it out"):
        Learner(ModelConfig(path=model, image_size=64), method="nmc")
    with pytest.raises(ConfigError, match="augmentation is for images"):
        Learner(model, method="nmc", train={"augment": True})


def test_what_no_modality_describes_is_refused() -> None:
    none = np.zeros(0, np.int64)
    with pytest.raises(DataError, match=r"modality 'point' is unknown; did you mean 'points'"):
        Examples([], none, none, "point")
    with pytest.raises(DataError, match="'language' is now called 'chat'"):
        Examples([], none, none, "language")
    assert find_modality("points").name == "points"
