"""Readers of table files: JSON lines, CSV (both optionally gzipped) and Parquet. They read; `rows` judges."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from contune.errors import DataError
from contune.stream.read.files import content, require_file
from contune.stream.read.rows import BadRow, Place, RawTable

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")


def read_table(path: Path) -> RawTable:
    """Read a table file by its suffix. Raises DataError where the file as a whole cannot be read."""
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise DataError(f"{path} is no file type that can be read; allowed are {', '.join(SUFFIXES)}")
    require_file(path, "*.jsonl")
    if name.endswith(".parquet"):
        return _read_parquet(path)
    data = content(path)
    if not data.strip():
        raise DataError(f"{path} is empty; give a file with at least one row")
    return _read_csv(str(path), data) if ".csv" in name[-7:] else _read_json(str(path), data)


def _read_json(source: str, data: bytes) -> RawTable:
    if data.lstrip()[:1] == b"[":
        unit, found = "row", _array_rows(source, data)
    else:
        unit, found = "line", _line_rows(data)
    records: list[dict[str, object]] = []
    numbers: list[int] = []
    positions: list[int] = []
    broken: list[BadRow] = []
    total = 0
    for position, (number, value) in enumerate(found):
        total = position + 1
        if isinstance(value, dict):
            records.append(value)
            numbers.append(number)
            positions.append(position)
        else:
            reason = (
                value.args[0]
                if isinstance(value, ValueError)
                else f"the row is a JSON {type(value).__name__}, not an object"
            )
            broken.append(BadRow(Place(source, unit, number), reason, "mend it (one JSON object a row)"))
    columns = tuple(dict.fromkeys(key for record in records for key in record))
    if not columns and broken:
        first = broken[0]
        raise DataError(f"{first.place}: {first.reason}; {first.advice} ({len(broken)} rows in all, none of them good)")

    def read(column: str) -> Sequence[object]:
        return [record.get(column) for record in records]

    return RawTable(source, unit, columns, read, numbers, positions, total, broken)


def _line_rows(data: bytes) -> Iterator[tuple[int, object]]:
    """(line number, value or ValueError) of every line that is not blank."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, _parsed(line)


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return ValueError(f"the row is not UTF-8 text (byte {error.start + 1})")
    except json.JSONDecodeError as error:
        return ValueError(f"the row is not valid JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        return ValueError("the row is not usable JSON (nested too deeply)")


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
    yield from enumerate(values, start=1)


def _read_csv(source: str, data: bytes) -> RawTable:
    # surrogateescape: one byte that is not UTF-8 costs its own row, not the file.
    reader = csv.reader(io.StringIO(data.decode(errors="surrogateescape"), newline=""), strict=True)
    rows = _csv_rows(source, reader)
    header = next(rows, (0, []))[1]
    if isinstance(header, str):
        raise DataError(f"{source}, line 1: the header cannot be read ({header}); mend it")
    records: list[list[str]] = []
    numbers: list[int] = []
    positions: list[int] = []
    broken: list[BadRow] = []
    total = 0
    for position, (number, row) in enumerate(rows):
        total = position + 1
        reason = row if isinstance(row, str) else _csv_row_reason(row, len(header))
        if reason is not None:
            broken.append(BadRow(Place(source, "line", number), reason, "mend it"))
        elif isinstance(row, list):
            records.append(row)
            numbers.append(number)
            positions.append(position)

    def read(column: str) -> Sequence[object]:
        at = header.index(column)
        values = [row[at] for row in records]
        # A CSV has no types: a column of whole numbers holds numbers, as it would in JSON or Parquet.
        if all(_WHOLE_NUMBER.fullmatch(value) for value in values if value):
            return [int(value) if value else None for value in values]
        return values

    return RawTable(source, "line", tuple(header), read, numbers, positions, total, broken)


def _csv_rows(source: str, reader: Any) -> Iterator[tuple[int, list[str] | str]]:
    """(number of the line where the row begins, fields or the reason why there are none), blank lines left out."""
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(
                    f"{source}, line {start}: a quote opened in this row is never closed; close it"
                ) from error
            yield start, f"the row is not valid CSV ({error})"
            continue
        if row:
            yield start, row


def _csv_row_reason(row: Sequence[str], width: int) -> str | None:
    if len(row) != width:
        return f"the row has {len(row)} fields where the header has {width}"
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

    def column(name: str) -> Any:
        try:
            return file.read(columns=[name]).column(name)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: column {name!r} cannot be read ({str(error).splitlines()[0]}); write the file again"
            ) from error

    return arrow_table(str(path), schema, column, file.metadata.num_rows)


def arrow_table(source: str, schema: Any, column: Any, count: int) -> RawTable:
    """A RawTable over Arrow data in the hub's layout: `column(name)` gives the chunked array of one column."""
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def is_image(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(child.name == "bytes" and is_bytes(child.type) for child in kind)
        return is_bytes(kind)

    def read(name: str) -> Sequence[object]:
        values = column(name)
        if pa.types.is_struct(values.type) and is_image(values.type):
            # Chunk by chunk: flattening a chunked struct column joins chunks, which overflows past 2 GiB of images.
            return [item for chunk in values.chunks for item in chunk.field("bytes").to_pylist()]
        return list(values.to_pylist())

    images = tuple(field.name for field in schema if is_image(field.type))
    names = class_label_names(source, (schema.metadata or {}).get(b"huggingface", b"{}"))
    numbers = range(1, count + 1)
    return RawTable(source, "row", tuple(schema.names), read, numbers, range(count), count, (), names, images)


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
