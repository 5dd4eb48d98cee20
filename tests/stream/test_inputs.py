"""Inputs that are decoded when asked: a bounded cache, rows of files without copies, and the same hashes as in memory."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stream_files import labelled, load, png, write_image_parquet, write_lines

from contune.errors import DataError
from contune.modality.image import Images, decode_image
from contune.stream import StreamConfig, load_stream, read_inputs
from contune.stream.inputs import Decoded, DecodedCache, Indexed, indexed, joined, taken
from contune.stream.read.spool import Spool
from contune.stream.task import Examples, joined_examples


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The bytes of every image that is decoded, in order."""
    seen: list[bytes] = []
    plain = Images.decode

    def noted(self: Images, value: Any) -> Any:
        seen.append(value)
        return plain(self, value)

    monkeypatch.setattr(Images, "decode", noted)
    return seen


def image_folder(folder: Path, count: int) -> Path:
    for split in ("train", "test"):
        for at in range(count):
            path = folder / split / "ab"[at % 2] / f"{at}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(at))
    return folder


def held_in_memory(examples: Examples) -> Examples:
    return Examples(list(examples.inputs), examples.labels, examples.ids, examples.modality)


def test_the_cache_drops_what_was_asked_for_longest_ago() -> None:
    images = [png(seed) for seed in range(3)]
    size = decode_image(images[0]).nbytes
    cache = DecodedCache(1)
    cache.limit = 2 * size
    inputs = Decoded(images, Images(), cache)
    first, second = inputs[0], inputs[1]
    assert inputs[0] is first
    third = inputs[2]  # takes the place of the second one
    assert cache.nbytes == 2 * size
    assert inputs[2] is third
    assert inputs[0] is first
    again = inputs[1]
    assert again is not second
    assert np.array_equal(again, second)


def test_nothing_is_kept_without_room() -> None:
    cache = DecodedCache(0)
    inputs = Decoded([png(0)], Images(), cache)
    assert inputs[0] is not inputs[0]
    assert cache.nbytes == 0


def test_two_sources_do_not_share_what_is_kept() -> None:
    cache = DecodedCache()
    one, other = (Decoded([png(seed)], Images(), cache) for seed in (0, 1))
    assert not np.array_equal(one[0], other[0])
    del one
    assert np.array_equal(Decoded([png(2)], Images(), cache)[0], decode_image(png(2)))


def test_taking_and_joining_copy_numbers_alone(decoded: list[bytes]) -> None:
    inputs = Decoded([png(seed) for seed in range(6)], Images(), None)
    chosen = taken(inputs, [4, 0, 2])
    both = joined([chosen, ["in memory"], inputs[1:3]])
    assert isinstance(both, Indexed)
    assert both.rows.tolist() == [4, 0, 2, 0, 1, 2]
    assert len(both.sources) == 2
    assert decoded == []
    assert both[3] == "in memory"
    assert np.array_equal(both[-1], decode_image(png(2)))
    assert len(both.take([3]).sources) == 1  # and the files are let go
    assert list(indexed(both).held()) == [(3, "in memory")]


def test_a_spool_gives_back_every_run_from_memory_and_from_its_file() -> None:
    runs = [bytes([at % 256]) * (at % 37) for at in range(3000)]
    small, large = Spool(), Spool(limit=500)
    for run in runs:
        small.append(run)
        large.append(run)
    assert small[:] == large[:] == runs
    assert large[-1] == runs[-1]
    assert large._file is not None
    with pytest.raises(IndexError):
        large[3000]


def test_images_of_a_folder_are_read_one_by_one_and_hash_as_in_memory(tmp_path: Path, decoded: list[bytes]) -> None:
    config = StreamConfig(data=str(image_folder(tmp_path, 8)), tasks=1, decoded_mb=0)
    stream = load_stream(config)
    assert len(decoded) == 16  # each proven to be an image, none kept
    train = stream.tasks[0].train
    decoded.clear()
    assert np.array_equal(train.inputs[1], decode_image(png(2)))
    assert len(decoded) == 1
    assert train.content_hash() == held_in_memory(train).content_hash()
    decoded.clear()
    train.content_hash()
    assert decoded == []  # it was kept
    part = train.take([5, 1])
    assert part.content_hash() == held_in_memory(part).content_hash()
    assert joined_examples([part, train]).ids.tolist() == [part.ids[0], part.ids[1], *train.ids]


def test_what_was_decoded_is_kept_as_far_as_it_fits(tmp_path: Path, decoded: list[bytes]) -> None:
    stream = load_stream(StreamConfig(data=str(image_folder(tmp_path, 4)), tasks=1))
    decoded.clear()
    stream.content_hash()
    assert decoded == []


def test_an_image_file_that_changes_under_a_run_is_named(tmp_path: Path) -> None:
    stream = load_stream(StreamConfig(data=str(image_folder(tmp_path, 2)), tasks=1, decoded_mb=0))
    changed = tmp_path / "train" / "a" / "0.png"
    changed.write_bytes(png(9, (8, 8)))
    with pytest.raises(DataError, match=r"0\.png has changed since the stream was read"):
        stream.tasks[0].train.inputs[0]
    changed.unlink()
    with pytest.raises(DataError, match=r"0\.png cannot be read any more"):
        stream.tasks[0].train.inputs[0]


def test_a_table_is_a_snapshot(tmp_path: Path) -> None:
    rows = labelled("abab")
    train = write_lines(tmp_path / "train.jsonl", rows)
    stream = load(train, train)
    train.write_text("gone")
    assert list(stream.tasks[0].train.inputs) == [row["text"] for row in rows]


def test_texts_lie_in_a_file_where_they_are_many(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"{at} {'ü' * 600}\n", "ab"[at % 2]] for at in range(1200))
    train = load(path, path).tasks[0].train
    assert isinstance(train.inputs, Indexed)
    (source,) = train.inputs.sources
    assert isinstance(source, Decoded)
    assert isinstance(source.source, Spool)
    assert source.source._file is not None
    assert train.inputs[1199] == f"1199 {'ü' * 600}\n"
    assert train.content_hash() == held_in_memory(train).content_hash()


def test_images_of_a_parquet_file_and_for_prediction(tmp_path: Path) -> None:
    images = [png(seed) for seed in range(4)]
    path = write_image_parquet(tmp_path / "train.parquet", images, [0, 1, 0, 1])
    train = load(path, path, decoded_mb=0).tasks[0].train
    assert all(np.array_equal(one, decode_image(image)) for one, image in zip(train.inputs, images, strict=True))
    found = read_inputs(path)
    assert len(found.inputs) == 4
    assert np.array_equal(found.inputs[3], decode_image(images[3]))


def test_damaged_images_are_found_with_their_row_or_left_out(tmp_path: Path) -> None:
    good = write_image_parquet(tmp_path / "test.parquet", [png(0), png(1)], [0, 1])
    bad = write_image_parquet(tmp_path / "train.parquet", [png(0), png(1)[:40], png(2), None], [0, 1, 1, 0])
    with pytest.raises(DataError, match=r"train\.parquet, row 4: the image \(column 'image'\) has no bytes.*1 more"):
        load(bad, good)
    stream = load(bad, good, skip_bad=True)
    assert stream.tasks[0].train.ids.tolist() == [0, 2]
    assert any("row 2" in note and "cannot be read" in note for note in stream.notes)
    assert np.array_equal(stream.tasks[0].train.inputs[1], decode_image(png(2)))
