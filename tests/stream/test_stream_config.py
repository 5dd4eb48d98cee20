from typing import Any

import pytest
from pydantic import ValidationError

from contune.stream import DataConfig, StreamConfig

FILES = {"train": "a.csv", "test": "b.csv"}


def test_a_full_section_reads_back_unchanged() -> None:
    given = {
        "data": {**FILES, "text": "body"},
        "kind": "task-incremental",
        "sizes": [2, 3],
        "classes": ["e", "d", "c", "b", "a"],
        "order_seed": None,
        "validation": 0.1,
        "per_class": 5,
    }
    config = StreamConfig.model_validate(given)
    assert StreamConfig.model_validate(config.model_dump()) == config
    assert config.model_dump()["data"]["text"] == "body"
    assert config.order_seed is None


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        StreamConfig(data="digits").tasks = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": "digits", "taks": 3}, "taks"),
        ({"data": {**FILES, "txet": "a"}}, "txet"),
        ({"data": "digits", "tasks": 0}, "greater than or equal to 1"),
        ({"data": "digits", "tasks": 2, "sizes": [5, 5]}, "tasks and sizes are both given"),
        ({"data": "digits", "validation": 1.0}, "less than 1"),
        ({"data": "digits", "classes": ["a", "b", "a"]}, "classes names 'a' more than once"),
        ({"data": "digits", "by": "d", "domains": ["x", "x"]}, "domains names 'x' more than once"),
        ({"data": "digits", "domains": ["x"]}, "give by, the column"),
        ({"data": {"train": "a.csv"}}, "a stream needs a test file"),
        ({"data": {}}, "nothing about where the examples are"),
        ({"data": {"folder": "f", "hub": "h"}}, "both folder and hub"),
        ({"data": {"folder": "f", **FILES}}, "give the folder or the files"),
        ({"data": {**FILES, "name": "sst2"}}, "give data.hub too"),
        ({"data": {**FILES, "text": "a", "image": "b"}}, "name one of them"),
        ({"data": {"hub": "h", "train": ["a", "b"]}}, "must be the name of one split"),
        ({"data": {**FILES, "validation": "v.csv"}, "validation": 0.1}, "both given"),
        ({"data": FILES, "kind": "domain-incremental"}, "nothing says which domain"),
        ({"data": FILES, "kind": "domain-incremental", "by": "d", "sizes": [1]}, "leave sizes out"),
        ({"data": {"train": {"x": "a.csv"}, "test": "b.csv"}}, "must both be mappings"),
        ({"data": {"train": {"x": "a.csv"}, "test": {"y": "b.csv"}}}, "'x' is in only one of"),
        ({"data": {"train": {"x": "a"}, "test": {"x": "b"}}, "by": "d"}, "names the domains already"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_file_is_opened(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StreamConfig.model_validate(given)
    assert message in str(caught.value)


def test_unknown_key_is_reported_once_and_at_its_place() -> None:
    with pytest.raises(ValidationError) as caught:
        StreamConfig.model_validate({"data": {**FILES, "txet": "a"}})
    errors = caught.value.errors()
    assert [error["type"] for error in errors] == ["extra_forbidden"]
    assert errors[0]["loc"][0] == "data"
    assert errors[0]["loc"][-1] == "txet"


def test_data_configuration_says_which_files_are_grouped() -> None:
    grouped = StreamConfig(data=DataConfig(train={"x": "a"}, test={"x": "b"}), kind="domain-incremental")
    assert grouped.grouped
    assert grouped.grouped_files
    assert not StreamConfig(data=DataConfig(train="a", test="b")).grouped
