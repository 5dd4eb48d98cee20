"""Streams from data that is in Python already: lists, data frames, data sets; checked and cut as files are."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from contune.errors import ConfigError, DataError
from contune.stream.build import stream_from
from contune.stream.config import DataConfig, StreamConfig
from contune.stream.inputs import DecodedCache
from contune.stream.modality import modalities
from contune.stream.read.columns import FILL_IN, Columns, split_from_table
from contune.stream.read.hub import dataset_table
from contune.stream.read.rows import BadRow, RawTable, Split
from contune.stream.read.sources import SPLITS, Source, require_by, without_unused
from contune.stream.task import Stream

BATCH_ROWS = 1024  # of a data frame that become Python objects at a time
PLAIN = (str, bytes, int, float, type(None))


def stream_of(
    train: Any,
    test: Any,
    validation: Any = None,
    *,
    name: str = "Python data",
    text: str | None = None,
    image: str | None = None,
    input: Mapping[str, str | list[str]] | None = None,  # noqa: A002
    label: str | None = None,
    **keys: Any,
) -> Stream:
    """See `Stream.of`."""
    # The configuration checks the names of columns; where the rows are it is not asked.
    named = DataConfig(train="train", test="test", text=text, image=image, input=input, label=label)
    if isinstance(validation, int | float):
        keys, validation = {**keys, "validation": validation}, None
    config = StreamConfig(data=name, **keys)
    if config.objective == "write":
        raise ConfigError(
            "objective is write, whose conversations Stream.of does not read; give files to load_stream, or make tasks of "
            "examples"
        )
    require_by(config, name)
    cache = DecodedCache(config.decoded_mb)
    splits: dict[str, Split] = {}
    for split, rows in zip(SPLITS, (train, test, validation), strict=True):
        if rows is not None:
            table, own = table_of(rows, f"{split} of {name}")
            columns = Columns(named.input_columns or own, named.label, config.by, config.objective)
            splits[split] = without_minus_one(split_from_table(table, columns, cache=cache))
    return stream_from(without_unused(Source(name, splits), config), config)


def table_of(rows: Any, source: str) -> tuple[RawTable, tuple[str, tuple[str, ...]] | None]:
    """The rows as a table, and for pairs without names of columns which modality their inputs have.

    Raises DataError for what is none of: a data frame, a `datasets` set, a list of mappings, a pair (inputs, labels), a
    data set of pairs (input, label) that has a length and gives them by number.
    """
    if _is(rows, "pandas", "DataFrame"):
        return _frame(rows, source), None
    if _is(rows, "datasets", "Dataset"):
        return dataset_table(source, rows), None
    if isinstance(rows, tuple) and len(rows) == 2 and all(hasattr(part, "__len__") for part in rows):
        inputs, labels = rows
        if len(inputs) != len(labels):
            raise DataError(
                f"{source} has {len(inputs)} inputs and {len(labels)} labels; give one of each for every row"
            )
        return _pairs(lambda at: (inputs[at], labels[at]), len(inputs), source)
    if hasattr(rows, "__getitem__") and hasattr(rows, "__len__") and not isinstance(rows, str | bytes | Mapping):
        if len(rows) and isinstance(rows[0], Mapping):
            return _records(rows, source), None
        if len(rows) and isinstance(rows[0], tuple | list) and len(rows[0]) == 2:
            return _pairs(lambda at: tuple(rows[at]), len(rows), source)
    raise DataError(
        f"{source} is a {type(rows).__name__}; give a list of mappings, a pandas data frame, a datasets.Dataset, a pair of "
        "lists (inputs, labels), or a data set that gives (input, label) by number, with at least one row"
    )


def _is(value: object, package: str, name: str) -> bool:
    """Whether a value is of a class of a package that need not be there."""
    module = sys.modules.get(package)
    return module is not None and isinstance(value, getattr(module, name))


def _table(
    source: str,
    columns: Sequence[str],
    rows: Callable[[Sequence[str]], Iterator[tuple[object, ...]]],
    count: int,
    first: Mapping[str, object],
    again: Callable[[int], object] | None = None,
) -> RawTable:
    """A table of rows in Python; `first` are the first values that are not missing, by column."""
    if count == 0:
        raise DataError(f"{source} is empty; give at least one row")
    odd = next((column for column in columns if not isinstance(column, str)), None)
    if odd is not None:
        raise DataError(f"{source} has the column {odd!r}; give columns names that are strings")
    binary = tuple(column for column, value in first.items() if isinstance(value, bytes))
    kinds = {column: _kind(value) for column, value in first.items()}
    objects = {column: kind for column, kind in kinds.items() if kind is not None}
    order = range(count)
    return RawTable(
        source, "row", tuple(columns), rows, range(1, count + 1), order, count, (), {}, binary, objects, again
    )


def _kind(value: object) -> str | None:
    """The modality of an object that is no plain value."""
    if isinstance(value, PLAIN):
        return None
    return next((name for name, modality in modalities().items() if modality.holds(value)), None)


def _frame(frame: Any, source: str) -> RawTable:
    def rows(names: Sequence[str]) -> Iterator[tuple[object, ...]]:
        for start in range(0, len(frame), BATCH_ROWS):
            part = frame.iloc[start : start + BATCH_ROWS]
            missing = [part[name].isna().tolist() for name in names]
            values = [part[name].tolist() for name in names]
            for row in range(len(part)):
                yield tuple(None if gone[row] else plain(own[row]) for own, gone in zip(values, missing, strict=True))

    named = [column for column in frame.columns if list(frame.columns).count(column) == 1]
    first = {column: next((plain(value) for value in frame[column].dropna().head(1)), None) for column in named}
    return _table(source, list(frame.columns), rows, len(frame), first)


def _records(records: Any, source: str) -> RawTable:
    first: dict[str, object] = {}
    for at in range(len(records)):
        record = records[at]
        if not isinstance(record, Mapping):
            raise DataError(f"{source}, row {at + 1} is a {type(record).__name__} where the first row is a mapping")
        for column, value in record.items():
            if first.get(column) is None:
                first[column] = plain(value)

    def rows(names: Sequence[str]) -> Iterator[tuple[object, ...]]:
        for at in range(len(records)):
            yield tuple(plain(records[at].get(name)) for name in names)

    return _table(source, list(first), rows, len(records), first)


def _pairs(
    pair: Callable[[int], tuple[Any, ...]], count: int, source: str
) -> tuple[RawTable, tuple[str, tuple[str, ...]]]:
    """Inputs and labels by number; an input is asked for again whenever it is needed, and must be the same then."""

    def rows(names: Sequence[str]) -> Iterator[tuple[object, ...]]:
        for at in range(count):
            values = dict(zip(("input", "label"), map(plain, pair(at)), strict=True))
            yield tuple(values[name] for name in names)

    first = dict(zip(("input", "label"), map(plain, pair(0)), strict=True)) if count else {}
    table = _table(source, ("input", "label"), rows, count, first, partial(_input_of, pair))
    shown = first["input"]
    found = [name for name, modality in modalities().items() if modality.holds(shown)]
    if isinstance(shown, bytes):
        found = [name for name, modality in modalities().items() if modality.binary]
    if not found:
        raise DataError(
            f"{source}, row 1: the input is a {type(shown).__name__}; give one of "
            f"{', '.join(modality.noun for modality in modalities().values())}, images as RGB arrays in uint8 or from Pillow"
        )
    return table, (found[0], ("input",))


def _input_of(pair: Callable[[int], tuple[Any, ...]], at: int) -> object:
    return plain(pair(at)[0])


def plain(value: object) -> object:
    """A value without the wrapping of numpy, torch or of encoded images.

    >>> plain(np.int64(3)), plain(np.array(2)), plain(float("nan")), plain({"bytes": b"...", "path": None})
    (3, 2, None, b'...')
    """
    if isinstance(value, np.generic) or (hasattr(value, "item") and getattr(value, "shape", None) == ()):
        value = value.item()
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, Mapping) and "bytes" in value:
        return value["bytes"]
    return value


def without_minus_one(split: Split) -> Split:
    """The split with -1 as a label taken for what it is in Python: a missing one."""
    if not split.numeric:
        return split
    wrong = [row for row in split.rows if row.label == "-1"]
    if not wrong:
        return split
    bad = [BadRow(row.place, "the label is -1, which marks a missing one", FILL_IN) for row in wrong]
    rows = [row for row in split.rows if row.label != "-1"]
    return replace(split, rows=rows, bad=sorted([*split.bad, *bad], key=lambda row: row.place.number))
