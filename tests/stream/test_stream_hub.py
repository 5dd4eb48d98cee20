"""The hub is replaced by data sets in memory: these tests never reach for the network."""

from pathlib import Path
from typing import Any

import pytest
from stream_files import png

from contune.errors import ConfigError, DataError
from contune.stream import DataConfig, StreamConfig, load_stream

datasets = pytest.importorskip("datasets")


def in_memory(columns: dict[str, list[Any]], features: dict[str, Any]) -> Any:
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    labels = datasets.ClassLabel(names=["pos", "neg"])
    text = {"sentence": datasets.Value("string"), "label": labels}
    image = {"img": datasets.Image(), "fine_label": labels}
    pictures = [{"bytes": png(at), "path": None} for at in range(4)]
    sets = {
        "org/texts": datasets.DatasetDict(
            train=in_memory({"sentence": ["a", "b", "c", "d"], "label": [0, 1, 1, 0]}, text),
            test=in_memory({"sentence": ["e", "f"], "label": [1, 0]}, text),
            hidden=in_memory({"sentence": ["g"], "label": [-1]}, text),
        ),
        "pictures": datasets.DatasetDict(
            train=in_memory({"img": pictures, "fine_label": [0, 1, 0, 1]}, image),
            test=in_memory({"img": pictures[:2], "fine_label": [1, 0]}, image),
        ),
    }

    def load_dataset(path: str, name: str | None = None, **options: object) -> Any:
        assert options == {}, "no option that would run code from the hub"
        if path not in sets:
            raise ConnectionError(f"Couldn't reach {path!r} on the Hub (OfflineModeIsEnabled)")
        return sets[path]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return sets


def test_texts_with_declared_class_order(hub: dict[str, Any], tmp_path: Path) -> None:
    stream = load_stream(StreamConfig(data="org/texts", tasks=1, order_seed=None), base=tmp_path)
    assert stream.class_names == ("pos", "neg")
    assert list(stream.tasks[0].train.inputs) == ["a", "b", "c", "d"]
    assert stream.tasks[0].train.labels.tolist() == [0, 1, 1, 0]
    assert stream.name == "org/texts"


def test_images_are_decoded(hub: dict[str, Any], tmp_path: Path) -> None:
    stream = load_stream(StreamConfig(data=DataConfig(hub="pictures"), tasks=2), base=tmp_path)
    assert stream.modality == "image"
    assert stream.tasks[0].train.inputs[0].shape == (4, 4, 3)  # type: ignore[union-attr]


def test_unreachable_set_missing_split_and_missing_domain_are_sentences(hub: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no built-in stream \(did you mean 'digits'\?\).*could not be loaded"):
        load_stream(StreamConfig(data="digit", tasks=1), base=tmp_path)
    with pytest.raises(DataError, match=r"has no split 'tset'; its splits are 'train', 'test', 'hidden'"):
        load_stream(StreamConfig(data=DataConfig(hub="org/texts", test="tset"), tasks=1))
    with pytest.raises(DataError, match=r"\(hidden split\), row 1: the label .* is -1"):
        load_stream(StreamConfig(data=DataConfig(hub="org/texts", test="hidden"), tasks=1))
    with pytest.raises(ConfigError, match=r"name the column with stream\.by"):
        load_stream(StreamConfig(data="org/texts", kind="domain-incremental"), base=tmp_path)
