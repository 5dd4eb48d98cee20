"""Readers of table files: JSON lines, CSV (both optionally gzipped) and Parquet. They read; `columns` judges.

Files are read row by row: once to learn their columns and to find broken rows, and once for each time that values are
asked for. Only a JSON array is read as a whole.
"""

import csv
import io
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from contune.errors import DataError
from contune.stream.read.files import first_byte, opened, require_file
from contune.stream.read.rows import BadRow, Place, RawTable

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
BATCH_ROWS = 1024  # of Parquet and Arrow that are in memory at a time
MOST_CHARACTERS = 2**28  # of one CSV field; the csv module's own limit of 131,072 is a page of text
MOST_DIGITS = 4300  # of a number: Python reads no longer ones, because the time that takes grows with their square
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")


def read_table(path: Path) -> RawTable:
    """Read a table file by its suffix. Raises DataError where the file as a whole cannot be read."""
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise DataError(f"{path} is no file type that can be read; allowed are {', '.join(SUFFIXES)}")
    require_file(path, "*.jsonl")
    if name.endswith(".parquet"):
        return _read_parquet(path)
    first = first_byte(path)
    if not first:
        raise DataError(f"{path} is empty; give a file with at least one row")
    if ".csv" in name[-7:]:
        return _read_csv(path)
    return _read_array(path) if first == b"[" else _read_lines(path)


def _read_lines(path: Path) -> RawTable:
    source = str(path)
    broken: list[BadRow] = []
    numbers, positions = array("q"), array("q")
    columns: dict[str, None] = {}
    total = 0
    for position, (number, value) in enumerate(_line_rows(path)):
        total = position + 1
        if isinstance(value, dict):
            columns |= dict.fromkeys(value)
            numbers.append(number)
            positions.append(position)
        else:
            broken.append(_broken(Place(source, "line", number), value))
    _require_columns(columns, broken)

    def rows(names: Sequence[str]) -> Iterator[tuple[object, ...]]:
        for _, value in _line_rows(path):
            if isinstance(value, dict):
                yield tuple(value.get(name) for name in names)

    return RawTable(source, "line", tuple(columns), rows, numbers, positions, total, broken)


def _read_array(path: Path) -> RawTable:
    source = str(path)
    with opened(path) as stream:
        found = list(_array_rows(source, stream.read()))
    broken = [_broken(Place(source, "row", number), value) for number, value in found if not isinstance(value, dict)]
    records = [(number, value) for number, value in found if isinstance(value, dict)]
    columns = dict.fromkeys(key for _, record in records for key in record)
    _require_columns(columns, broken)

    def rows(names: Sequence[str]) -> Iterator[tuple[object, ...]]:
        return (tuple(record.get(name) for name in names) for _, record in records)

    numbers = [number for number, _ in records]
    positions = [number - 1 for number in numbers]
    return RawTable(source, "row", tuple(columns), rows, numbers, positions, len(found), broken)


def _broken(place: Place, value: object) -> BadRow:
    """A row that is no object, or the error that reading it gave."""
    reason = (
        value.args[0] if isinstance(value, ValueError) else f"the row is a JSON {type(value).__name__}, not an object"
    )
    return BadRow(place, reason, "mend it (one JSON object a row)")


def _require_columns(columns: dict[str, None], broken: Sequence[BadRow]) -> None:
    if not columns and broken:
        first = broken[0]
        raise DataError(f"{first.place}: {first.reason}; {first.advice} ({len(broken)} rows in all, none of them good)")


def _line_rows(path: Path) -> Iterator[tuple[int, object]]:
    """(line number, value or ValueError) of every line that is not blank."""
    with opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, _parsed(line.removesuffix(b"\n"))


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return ValueError(f"the row is not UTF-8 text (byte {error.start + 1})")
    except json.JSONDecodeError as error:
        return ValueError(f"the row is not valid JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        return ValueError("the row is not usable JSON (nested too deeply)")
    except ValueError:  # neither of the two above: the one that is left
        return ValueError(f"the row holds a number of more than {MOST_DIGITS:,} digits")


def _array_rows(source: str, data: bytes) -> Iterator[tuple[int, object]]:
    try:
        values = json.loads(data)
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 text (byte {error.start + 1}); write it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{source}, line {error.lineno}: not valid JSON ({error.msg} at column {error.colno}); mend it"
        ) from error
    except RecursionError as error:
        raise DataError(f"{source} is nested too deeply; give a list of flat objects") from error
    except ValueError as error:
        raise DataError(f"{source} holds a number of more than {MOST_DIGITS:,} digits; write it as a text") from error
    yield from enumerate(values, start=1)


def _read_csv(path: Path) -> RawTable:
    source = str(path)
    found = _csv_rows(path)
    header = next(found, (0, []))[1]
    if isinstance(header, str):
        raise DataError(f"{source}, line 1: the header cannot be read ({header}); mend it")
    whole = [True] * len(header)
    broken: list[BadRow] = []
    numbers, positions = array("q"), array("q")
    total = 0
    for total, (number, row) in enumerate(found, start=1):
        reason = row if isinstance(row, str) else _csv_row_reason(row, len(header))
        if reason is not None:
            broken.append(BadRow(Place(source, "line", number), reason, "mend it"))
            continue
        numbers.append(number)
        positions.append(total - 1)
        _note_numbers(row, whole)

    def rows(names: Sequence[str]) -> Iterator[tuple[object, ...]]:
        places = [header.index(name) for name in names]
        again = _csv_rows(path)
        next(again, None)
        for _, row in again:
            if isinstance(row, list) and _csv_row_reason(row, len(header)) is None:
                # A CSV has no types: a column of whole numbers holds numbers, as it would in JSON or Parquet.
                yield tuple(_number(row[at]) if whole[at] else row[at] for at in places)

    return RawTable(source, "line", tuple(header), rows, numbers, positions, total, broken, untyped=True)


def _note_numbers(row: Sequence[str], whole: list[bool]) -> None:
    """Note which columns this row shows to hold something else than whole numbers."""
    for at, value in enumerate(row):
        if whole[at] and value and _WHOLE_NUMBER.fullmatch(value) is None:
            whole[at] = False


def _number(value: str) -> int | None:
    return int(value) if value else None


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str] | str]]:
    """(number of the line where the row begins, fields or the reason why there are none), blank lines left out."""
    with opened(path) as stream:
        # surrogateescape: one byte that is not UTF-8 costs its own row, not the file.
        csv.field_size_limit(MOST_CHARACTERS)
        reader = csv.reader(io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline=""), strict=True)
        while True:
            start = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    raise DataError(
                        f"{path}, line {start}: a quote opened in this row is never closed; close it"
                    ) from error
                yield start, f"the row is not valid CSV ({error})"
                continue
            if row:
                yield start, row


def _csv_row_reason(row: Sequence[str], width: int) -> str | None:
    if len(row) != width:
        return f"the row has {len(row)} fields where the header has {width}"
    if any(len(value) > MOST_DIGITS and _WHOLE_NUMBER.fullmatch(value) for value in row):
        return f"the row holds a number of more than {MOST_DIGITS:,} digits"
    if any("\udc80" <= character <= "\udcff" for value in row if not value.isascii() for character in value):
        return "the row is not UTF-8 text"
    return None


def _read_parquet(path: Path) -> RawTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows == 0:
            raise DataError(f"{path} is empty; give a file with at least one row")
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}); write the file again"
        ) from error

    def batches(names: Sequence[str]) -> Iterator[Any]:
        try:
            yield from file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(names)))
        except (pa.ArrowException, OSError) as error:
            what = f"column{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"
            raise DataError(
                f"{path}: {what} cannot be read ({str(error).splitlines()[0]}); write the file again"
            ) from error

    return arrow_table(str(path), schema, batches, file.metadata.num_rows)


def arrow_table(source: str, schema: Any, batches: Any, count: int) -> RawTable:
    """A RawTable over Arrow data in the hub's layout: `batches(names)` gives record batches of some columns."""
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def is_binary(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(child.name == "bytes" and is_bytes(child.type) for child in kind)
        return is_bytes(kind)

    def plain(column: Any) -> list[object]:
        held = column.field("bytes") if pa.types.is_struct(column.type) and is_binary(column.type) else column
        return list(held.to_pylist())

    def rows(names: Sequence[str]) -> Iterator[tuple[object, ...]]:
        for batch in batches(names):
            yield from zip(*(plain(batch.column(name)) for name in names), strict=True)

    binary = tuple(field.name for field in schema if is_binary(field.type))
    labels = class_label_names(source, (schema.metadata or {}).get(b"huggingface", b"{}"))
    return RawTable(
        source, "row", tuple(schema.names), rows, range(1, count + 1), range(count), count, (), labels, binary
    )


def class_label_names(source: str, metadata: bytes) -> dict[str, tuple[str, ...]]:
    """Label names per column from the hub's schema metadata; columns that are no class labels are left out."""
    try:
        features = json.loads(metadata).get("info", {}).get("features", {})
        found = {
            column: tuple(str(name) for name in feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and isinstance(feature.get("names"), list)
        }
    except (ValueError, AttributeError) as error:
        raise DataError(f"{source}: its 'huggingface' metadata is damaged ({error}); write the file again") from error
    for column, names in found.items():
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"{source}: column {column!r} declares the class {repeated!r} more than once; give every class once"
            )
    return found
