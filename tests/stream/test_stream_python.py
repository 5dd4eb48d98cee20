"""Streams made in Python are the streams that the same rows in files make."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stream_files import png, write_image_parquet

from contune import Examples, Stream, StreamConfig, Task, load_stream
from contune.errors import ConfigError, DataError
from contune.modality.image import decode_image

pandas = pytest.importorskip("pandas")
datasets = pytest.importorskip("datasets")

ROWS = [{"text": f"text {at}, ü", "label": 3 * (at % 5), "where": "ab"[at % 2]} for at in range(30)]
SHAPES = {
    "records": lambda rows: rows,
    "frame": lambda rows: pandas.DataFrame(rows),
    "dataset": lambda rows: datasets.Dataset.from_list(rows),
    "pair": lambda rows: ([row["text"] for row in rows], np.array([row["label"] for row in rows])),
    "torch": lambda rows: TorchSet([(row["text"], torch.tensor(row["label"])) for row in rows]),
}


class TorchSet(torch.utils.data.Dataset[Any]):
    def __init__(self, items: list[tuple[Any, Any]]) -> None:
        self.items, self.asked = items, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, at: int) -> Any:
        self.asked += 1
        return self.items[at]


def from_csv(folder: Path, **keys: Any) -> Stream:
    for split, rows in (("train", ROWS), ("test", ROWS[:10])):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(rows)
    return load_stream(StreamConfig(data=str(folder), **keys))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_rows_are_the_same_stream(shape: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"tasks": 5, "validation": 0.2}
    wanted = from_csv(tmp_path, **keys)
    found = Stream.of(train=SHAPES[shape](ROWS), test=SHAPES[shape](ROWS[:10]), **keys)
    assert found.content_hash() == wanted.content_hash()
    assert [task.class_names for task in found.tasks] == [task.class_names for task in wanted.tasks]
    assert [task.train.ids.tolist() for task in found.tasks] == [task.train.ids.tolist() for task in wanted.tasks]
    assert Stream.of(SHAPES[shape](ROWS), SHAPES[shape](ROWS[:9]), **keys).content_hash() != wanted.content_hash()


def test_domains_come_from_a_column(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"kind": "domain-incremental", "by": "where"}
    assert Stream.of(ROWS, ROWS[:10], **keys).content_hash() == from_csv(tmp_path, **keys).content_hash()
    with pytest.raises(ConfigError, match=r"nothing says which domain a row of mine is from"):
        Stream.of(ROWS, ROWS, kind="domain-incremental", name="mine")


@pytest.mark.parametrize("shape", ["bytes", "pillow", "array", "torch"])
def test_images_in_every_shape(shape: str, tmp_path: Path) -> None:
    images, labels = [png(seed) for seed in range(6)], [0, 1, 2, 0, 1, 2]
    path = write_image_parquet(tmp_path / "train.parquet", images, labels)
    wanted = load_stream(StreamConfig.model_validate({"data": {"train": str(path), "test": str(path)}, "tasks": 3}))
    decoded = [decode_image(image) for image in images]
    made: dict[str, Any] = {
        "bytes": [
            {"image": {"bytes": image, "path": None}, "label": label}
            for image, label in zip(images, labels, strict=True)
        ],
        "pillow": [
            {"image": Image.fromarray(image), "label": label} for image, label in zip(decoded, labels, strict=True)
        ],
        "array": (decoded, labels),
        "torch": TorchSet(list(zip([Image.fromarray(image) for image in decoded], labels, strict=True))),
    }
    found = Stream.of(made[shape], made[shape], tasks=3, decoded_mb=0)
    assert found.content_hash() == wanted.content_hash()
    if shape == "torch":
        before = made[shape].asked
        assert np.array_equal(found.tasks[0].train.inputs[1], wanted.tasks[0].train.inputs[1])
        assert made[shape].asked == before + 1  # asked for again, and not held


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"label": 1.5}, r"train of Python data, row 2: the label \(column 'label'\) is 1\.5, a float"),
        ({"label": None}, r"row 2: the label \(column 'label'\) is missing"),
        ({"label": -1}, r"row 2: the label is -1, which marks a missing one"),
        ({"label": np.nan}, r"row 2: the label \(column 'label'\) is missing"),
        ({"text": 7}, r"row 2: the text \(column 'text'\) is a int and not a string"),
        ({"text": None}, r"row 2: the text \(column 'text'\) is missing"),
    ],
)
def test_bad_rows_are_sentences_with_their_row(change: dict[str, Any], sentence: str) -> None:
    rows = [ROWS[0], {**ROWS[1], **change}, *ROWS[2:]]
    with pytest.raises(DataError, match=sentence):
        Stream.of(rows, ROWS, tasks=1)
    assert len(Stream.of(rows, ROWS, tasks=1, skip_bad=True).tasks[0].train) == 29


def test_data_of_no_known_shape_is_a_sentence() -> None:
    for odd in ("train.csv", 3, [], [1, 2], iter(ROWS)):
        with pytest.raises(DataError, match=r"train of Python data is a .*; give a list of mappings"):
            Stream.of(odd, ROWS, tasks=1)
    with pytest.raises(DataError, match="2 inputs and 1 labels"):
        Stream.of((["a", "b"], [0]), ROWS, tasks=1)
    with pytest.raises(DataError, match="row 1: the input is a set"):
        Stream.of(([{1}], [0]), ROWS, tasks=1)
    with pytest.raises(DataError, match="has no column 'body' for the text"):
        Stream.of(ROWS, ROWS, text="body", tasks=1)
    with pytest.raises(ConfigError, match=r"Stream\.of does not read"):
        Stream.of(ROWS, ROWS, objective="write", kind="domain-incremental", by="where")


@pytest.mark.parametrize(
    ("names", "labels", "sentence"),
    [
        ("abc", [0, 1, -1], r"labels\[2\] is -1; give whole numbers from 0"),
        ("ab", [True, False, True], "labels are of type bool, the first is True"),
        ("ab", [0.0, 1.0], r"labels are of type float64, the first is 0\.0"),
        ("ab", ["a", "b"], "labels are of type <U1, the first is 'a'"),
        ("ab", [0, 1, 2], r"label 2 of train example 2 is beyond the 2 class_names of task 't'"),
        ("ab", [[0], [1]], r"labels have the shape \(2, 1\)"),
    ],
)
def test_labels_that_are_no_positions_are_sentences(names: str, labels: list[Any], sentence: str) -> None:
    def task() -> Task:
        examples = Examples(["a text"] * len(labels), np.asarray(labels), np.arange(len(labels)), "text")
        return Task("t", tuple(names), examples, examples)

    with pytest.raises(DataError, match=sentence):
        task()
