"""Numbers and long fields in tables: read as they are written, or refused in a sentence with the row."""

import json
from pathlib import Path

import pytest

from contune.errors import DataError
from contune.stream import StreamConfig, load_stream, read_inputs
from contune.stream.read.tables import MOST_CHARACTERS, MOST_DIGITS
from contune.stream.task import Stream


def read(folder: Path, name: str, body: str) -> Stream:
    (folder / name).write_text(body)
    values = {"data": {"train": name, "test": name}, "tasks": 1, "order_seed": None}
    return load_stream(StreamConfig.model_validate(values), base=folder)


def test_texts_that_are_all_numbers_are_texts_in_a_csv_and_labels_stay_numbers(tmp_path: Path) -> None:
    task = read(tmp_path, "a.csv", 'text,label\n"2024",10\n"12",9\n"7",10\n').tasks[0]
    assert list(task.train.inputs) == ["2024", "12", "7"]
    assert task.class_names == ("9", "10")
    (tmp_path / "b.csv").write_text("text\n2024\n-3\n")
    assert list(read_inputs(tmp_path / "b.csv").inputs) == ["2024", "-3"]


def test_numbers_are_no_texts_where_a_file_has_types(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: the text .* is a int and not a string"):
        read(tmp_path, "a.jsonl", '{"text": 2024, "label": "a"}\n')


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.csv", "text,label\na,{}\n"),
        ("a.jsonl", '{{"text": "a", "label": {}}}\n'),
        ("a.json", '[{{"text": "a", "label": {}}}]\n'),
    ],
)
def test_a_number_of_thousands_of_digits_is_a_sentence(name: str, body: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a number of more than 4,300 digits"):
        read(tmp_path, name, body.format("9" * (MOST_DIGITS + 1)))
    most = "9" * MOST_DIGITS
    assert read(tmp_path, name, body.format(most)).tasks[0].class_names == (most,)


def test_long_texts_are_read_from_a_csv(tmp_path: Path) -> None:
    long = "w " * 70_000 + "end"
    task = read(tmp_path, "a.csv", f"text,label\n{long},a\nshort,b\n").tasks[0]
    assert list(task.train.inputs) == [long, "short"]
    assert MOST_CHARACTERS > 10**8
    whole = json.dumps({"text": long, "label": "a"}) + "\n"
    assert list(read(tmp_path, "a.jsonl", whole).tasks[0].train.inputs) == [long]
