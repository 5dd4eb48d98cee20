import contextlib
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_files import labelled, load, png, write_image_parquet, write_lines

from contune.errors import DataError
from contune.stream import DataConfig, StreamConfig, load_stream, read_inputs
from contune.stream.read.tables import read_table

GOOD = labelled(["cat", "dog", "cat", "dog"])


@pytest.fixture
def test_file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "test.jsonl", labelled(["dog", "cat"], "test"))


def test_json_lines_csv_and_parquet_give_the_same_stream(tmp_path: Path, test_file: Path) -> None:
    rows = [{"text": f'number {at}, "quoted"\nand a new line', "label": at % 12} for at in range(24)]
    lines = write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    quoted = ["text,label", *('"' + str(row["text"]).replace('"', '""') + f'",{row["label"]}' for row in rows)]
    (tmp_path / "a.csv").write_text("\n".join(quoted))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + "\r\n".join(quoted).encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    test = write_lines(tmp_path / "t.jsonl", rows[:12])
    hashes = {
        name: load(tmp_path / name, test, tasks=3).content_hash()
        for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.csv.gz", "a.parquet")
    }
    assert len(set(hashes.values())) == 1, hashes


def test_whole_number_labels_sort_as_numbers_and_strings_as_strings(tmp_path: Path) -> None:
    for kind, expected in ((int, ["0", "1", "2", "10"]), (str, ["0", "1", "10", "2"])):
        rows = labelled([kind(label) for label in (10, 2, 1, 0)])
        path = write_lines(tmp_path / f"{kind.__name__}.jsonl", rows)
        assert list(load(path, path, order_seed=None).class_names) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "open', "not valid JSON"),
        ("[1, 2]", "not an object"),
        ({"text": "  ", "label": "cat"}, "the text (column 'text') is empty"),
        ({"label": "cat"}, "the text (column 'text') is missing"),
        ({"text": 5, "label": "cat"}, "is a int and not a string"),
        ({"text": "x"}, "the label (column 'label') is missing"),
        ({"text": "x", "label": None}, "the label (column 'label') is missing"),
        ({"text": "x", "label": ""}, "the label (column 'label') is missing"),
        ({"text": "x", "label": 1.5}, "1.5, a float, and not a string or a whole number"),
        ('{"text": "\\ud800", "label": "cat"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_json_row_is_named_with_file_and_line(
    tmp_path: Path, test_file: Path, row: dict[str, object] | str, message: str
) -> None:
    train = write_lines(tmp_path / "train.jsonl", [*GOOD[:2], "", row, *GOOD[2:]])
    with pytest.raises(DataError) as caught:
        load(train, test_file)
    # The blank third line counts as a line and not as a row.
    assert f"{train}, line 4: " in str(caught.value)
    assert message in str(caught.value)
    stream = load(train, test_file, skip_bad=True)
    assert stream.tasks[0].train.ids.tolist() == [0, 1, 3, 4]
    assert len(stream.notes) == 1
    assert "left out 1 row of" in stream.notes[0]
    assert stream.notes[0].endswith("line 4")


def test_a_row_that_is_not_utf8_is_named(tmp_path: Path, test_file: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_bytes(b'{"text": "a", "label": "cat"}\n{"text": "\xff", "label": "cat"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl, line 2: the row is not UTF-8"):
        load(train, test_file)
    table = tmp_path / "train.csv"
    table.write_bytes(b"text,label\na,cat\n\xff,cat\n")
    with pytest.raises(DataError, match=r"train\.csv, line 3: the row is not UTF-8"):
        load(table, test_file)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,cat", "b,cat,more", "c,dog"], "line 3: the row has 3 fields where the header has 2"),
        (['"a\nb",cat', "b", "c,dog"], "line 4: the row has 1 fields where the header has 2"),
        (["a,cat", ",dog"], "line 3: the text (column 'text') is empty"),
        (["a,cat", "b,"], "line 3: the label (column 'label') is missing"),
        (["a,cat", '"never closed,dog'], "line 3: a quote opened in this row is never closed"),
        (["a,cat", '"b"c,dog'], "line 3: the row is not valid CSV"),
    ],
)
def test_a_bad_csv_row_is_named_with_its_line(tmp_path: Path, test_file: Path, lines: list[str], message: str) -> None:
    train = tmp_path / "train.csv"
    train.write_text("\n".join(["text,label", *lines]) + "\n")
    with pytest.raises(DataError) as caught:
        load(train, test_file)
    assert message in str(caught.value)


def test_parquet_rows_are_numbered_and_class_labels_resolved(tmp_path: Path) -> None:
    images = [png(seed) for seed in range(4)]
    names = ["zebra", "ape", "cat"]
    train = write_image_parquet(tmp_path / "train.parquet", images, [0, 1, 2, 0], names)
    test = write_image_parquet(tmp_path / "test.parquet", images[:3], [2, 1, 0], names)
    stream = load(train, test, order_seed=None)
    assert stream.modality == "image"
    assert stream.class_names == tuple(names)
    assert stream.tasks[0].train.labels.tolist() == [0, 1, 2, 0]
    for labels, message in (
        ([0, 1, 3, 0], "row 3: the label (column 'label') is 3, outside the 3 declared classes"),
        ([0, 1, -1, 0], "row 3: the label (column 'label') is -1, which marks a missing one"),
        ([0, 1, None, 0], "row 3: the label (column 'label') is missing"),
    ):
        bad = write_image_parquet(tmp_path / "bad.parquet", images, labels, names)
        with pytest.raises(DataError) as caught:
            load(bad, test)
        assert message in str(caught.value)


def test_unreadable_image_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    images = [png(seed) for seed in range(5)]
    test = write_image_parquet(tmp_path / "test.parquet", images[:2], [0, 1], ["a", "b"])
    for damaged in (images[2][:40], b"no image", b"", None):
        train = write_image_parquet(
            tmp_path / "train.parquet", [*images[:2], damaged, *images[3:]], [0, 1, 0, 1, 0], ["a", "b"]
        )
        with pytest.raises(DataError, match=r"train\.parquet, row 3: the image"):
            load(train, test)
        stream = load(train, test, skip_bad=True)
        assert stream.tasks[0].train.ids.tolist() == [0, 1, 3, 4]
        assert "1 row" in stream.notes[0]


def test_missing_column_names_the_file_and_its_columns(tmp_path: Path, test_file: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", [{"body": "a", "topic": "x"}])
    with pytest.raises(DataError) as caught:
        load(train, test_file)
    assert f"{train} has no text column" in str(caught.value)
    assert "its columns are 'body', 'topic'" in str(caught.value)
    for keys, message in (
        ({"text": "body"}, "has no label column"),
        ({"text": "bdy", "label": "topic"}, "did you mean 'body'?"),
        ({"text": "body", "label": "tpic"}, "did you mean 'topic'?"),
        ({"image": "body"}, "does not hold images"),
    ):
        config = StreamConfig(data=DataConfig(train=str(train), test=str(train), **keys), tasks=1)
        with pytest.raises(DataError) as caught:
            load_stream(config)
        assert message in str(caught.value)


def test_two_columns_of_one_name_are_refused(tmp_path: Path, test_file: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label,text\na,cat,b\n")
    with pytest.raises(DataError, match="2 columns named 'text'"):
        load(tmp_path / "train.csv", test_file)


def test_several_files_and_globs_count_rows_on(tmp_path: Path, test_file: Path) -> None:
    write_lines(tmp_path / "part-1.jsonl", [*GOOD[:2], "{broken"])
    write_lines(tmp_path / "part-2.jsonl", GOOD[2:])
    for train in ("part-*.jsonl", ["part-1.jsonl", "part-2.jsonl"]):
        config = StreamConfig(data=DataConfig(train=train, test="test.jsonl"), tasks=2, skip_bad=True)
        stream = load_stream(config, base=tmp_path)
        ids = sorted(row for task in stream.tasks for row in task.train.ids.tolist())
        assert ids == [0, 1, 3, 4]
    twice = StreamConfig(data=DataConfig(train=["part-1.jsonl", "part-*.jsonl"], test="test.jsonl"), tasks=2)
    with pytest.raises(DataError, match="more than once"):
        load_stream(twice, base=tmp_path)
    none = StreamConfig(data=DataConfig(train="shard-*.jsonl", test="test.jsonl"), tasks=2)
    with pytest.raises(DataError, match="no file matches"):
        load_stream(none, base=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"\n \n", "is empty"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}' * 99, mtime=0)[:-9], "cannot be read"),
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
        ("a.json", b"[{]", "line 1: not valid JSON"),
        ("a.txt", b"a", "allowed are .jsonl"),
        ("a.csv", b'"text,label\n', "never closed"),
    ],
    ids=["blank", "no gzip", "cut gzip", "no parquet", "broken array", "unknown suffix", "open quote in header"],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist"):
        read_table(tmp_path / "gone.jsonl")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ".csv.gz"]))
def test_no_bytes_escape_as_another_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(content)
    # Any other exception fails the test.
    with contextlib.suppress(DataError):
        assert load(path, path, skip_bad=True).tasks[0].train.modality == "text"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=8))
def test_texts_arrive_unchanged(tmp_path: Path, texts: list[str]) -> None:
    rows = [{"text": text, "label": "a"} for text in texts]
    path = write_lines(tmp_path / "any.jsonl", rows)
    assert list(load(path, path).tasks[0].train.inputs) == texts


def test_inputs_without_labels_are_read_for_prediction(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "new.jsonl", [{"text": "a"}, {"text": ""}, {"text": "c"}])
    with pytest.raises(DataError, match=r"new\.jsonl, line 2: the text"):
        read_inputs(path)
    found = read_inputs(path, skip_bad=True)
    assert (list(found.inputs), found.ids, found.modality) == (["a", "c"], (0, 2), "text")
    assert len(found.notes) == 1
    (tmp_path / "images").mkdir()
    for at in range(2):
        (tmp_path / "images" / f"{at}.png").write_bytes(png(at))
    images = read_inputs(tmp_path / "images")
    assert [image.shape for image in images.inputs] == [(4, 4, 3)] * 2  # type: ignore[union-attr]
    assert len(read_inputs(tmp_path / "images" / "1.png").inputs) == 1
    with pytest.raises(DataError, match="allowed are"):
        read_inputs(tmp_path / "new.txt")
