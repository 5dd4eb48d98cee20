"""From a raw table to checked rows: which columns hold input, label and domain, and what is wrong with a value."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from contune.errors import DataError, did_you_mean
from contune.stream.read.rows import BadRow, Place, RawTable, Row, Split
from contune.stream.task import Modality

TEXT_COLUMNS = ("text", "sentence", "content", "input")
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "intent")

FILL_IN = "fill it in or remove the row"


@dataclass(frozen=True)
class Columns:
    """Which columns to read; None where they are to be found by their usual names."""

    text: str | None = None
    image: str | None = None
    label: str | None = None
    group: str | None = None


def split_from_table(table: RawTable, columns: Columns, *, first_id: int = 0, group: str | None = None) -> Split:
    """Check every row of a table. Raises DataError where a column is missing; bad rows are returned, not raised."""
    modality, inputs, reasons = input_values(table, columns)
    label_column = _find_column(table, "label", columns.label, LABEL_COLUMNS)
    labels, label_reasons, numeric = _names(table, label_column, "label")
    groups: Sequence[str | None] = [group] * len(inputs)
    group_reasons: dict[int, str] = {}
    if columns.group is not None:
        group_column = _find_column(table, "domain", columns.group, ())
        groups, group_reasons, _ = _names(table, group_column, "domain")
    reasons = {**group_reasons, **label_reasons, **reasons}
    rows: list[Row] = []
    bad = list(table.broken)
    for at, (item, label, one_group) in enumerate(zip(inputs, labels, groups, strict=True)):
        place = Place(table.source, table.unit, table.numbers[at])
        if at in reasons:
            bad.append(BadRow(place, reasons[at], FILL_IN))
        else:
            rows.append(
                Row(cast(str | bytes, item), cast(str, label), one_group, first_id + table.positions[at], place)
            )
    bad.sort(key=lambda row: row.place.number)
    group_names = table.class_names.get(columns.group) if columns.group is not None else None
    return Split(rows, bad, table.total, table.class_names.get(label_column), group_names, numeric, modality)


def input_values(table: RawTable, columns: Columns) -> tuple[Modality, Sequence[object], dict[int, str]]:
    """The kind and values of the input column, and for every entry that is no such input the reason."""
    modality, column = _input_column(table, columns)
    values = table.read(column)
    check = _text_reason if modality == "text" else _image_reason
    found = ((at, check(value, column)) for at, value in enumerate(values))
    return modality, values, {at: reason for at, reason in found if reason is not None}


def _input_column(table: RawTable, columns: Columns) -> tuple[Modality, str]:
    if columns.text is not None:
        return "text", _find_column(table, "text", columns.text, ())
    if columns.image is not None:
        column = _find_column(table, "image", columns.image, ())
        if column not in table.image_columns:
            raise DataError(
                f"{table.source}: column {column!r} does not hold images; images come as the struct of bytes and path "
                "(or plain bytes) of a Parquet file, or as a folder of images"
            )
        return "image", column
    texts = [name for name in TEXT_COLUMNS if name in table.columns and name not in table.image_columns]
    images = [name for name in IMAGE_COLUMNS if name in table.image_columns]
    if texts and images:
        raise DataError(
            f"{table.source} has both a text column {texts[0]!r} and an image column {images[0]!r}; say which "
            "one is the "
            "input with data.text or data.image"
        )
    if texts:
        return "text", _find_column(table, "text", texts[0], ())
    if images:
        return "image", _find_column(table, "image", images[0], ())
    raise DataError(
        f"{table.source} has no text column ({', '.join(TEXT_COLUMNS)}) and no image column "
        f"({', '.join(IMAGE_COLUMNS)}); "
        f"its columns are {_listed(table.columns)}; name the right one with data.text or data.image"
    )


def _find_column(table: RawTable, role: str, given: str | None, usual: Iterable[str]) -> str:
    if given is not None:
        if given not in table.columns:
            raise DataError(
                f"{table.source} has no column {given!r} for the {role}; its columns are {_listed(table.columns)}; "
                f"{did_you_mean(given, table.columns)}"
            )
        found = given
    else:
        matches = [name for name in usual if name in table.columns]
        if not matches:
            raise DataError(
                f"{table.source} has no {role} column ({', '.join(usual)}); its columns are {_listed(table.columns)}; "
                f"name the right one with data.{role}"
            )
        found = matches[0]
    if table.columns.count(found) > 1:
        raise DataError(
            f"{table.source} has {table.columns.count(found)} columns named {found!r}; give every column its own name"
        )
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none at all"


def _text_reason(value: object, column: str) -> str | None:
    if value is None:
        return f"the text (column {column!r}) is missing"
    if not isinstance(value, str):
        return f"the text (column {column!r}) is a {type(value).__name__} and not a string"
    if not value.strip():
        return f"the text (column {column!r}) is empty"
    return None if _is_unicode(value) else f"the text (column {column!r}) holds half of a surrogate pair"


def _image_reason(value: object, column: str) -> str | None:
    return None if isinstance(value, bytes) and value else f"the image (column {column!r}) has no bytes"


def _names(table: RawTable, column: str, role: str) -> tuple[list[str | None], dict[int, str], bool]:
    """Every value of a label or domain column as a name; positions without one get a reason."""
    declared = table.class_names.get(column)
    values = table.read(column)
    known: dict[tuple[type, object], str | None] = {}
    names: list[str | None] = []
    reasons: dict[int, str] = {}
    for at, value in enumerate(values):
        key = (type(value), value) if isinstance(value, str | int | None) else (type(value), repr(value))
        if key not in known:
            known[key] = _name(value, declared)
        names.append(known[key])
        if known[key] is None:
            reasons[at] = _name_reason(value, column, role, declared)
    numeric = declared is None and all(kind in (int, type(None)) for kind, _ in known)
    return names, reasons, numeric


def _name(value: object, declared: tuple[str, ...] | None) -> str | None:
    if declared is not None:
        return declared[value] if isinstance(value, int) and 0 <= value < len(declared) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) and value.strip() and _is_unicode(value) else None


def _is_unicode(value: str) -> bool:
    """Whether it can be written at all: JSON can spell half a surrogate pair, which no UTF-8 file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name_reason(value: object, column: str, role: str, declared: tuple[str, ...] | None) -> str:
    where = f"the {role} (column {column!r})"
    if value is None or (isinstance(value, str) and not value.strip()):
        return f"{where} is missing"
    if declared is not None:
        if value == -1:
            return f"{where} is -1, which marks a missing one"
        return f"{where} is {value!r}, outside the {len(declared)} declared classes"
    if isinstance(value, str):
        return f"{where} holds half of a surrogate pair"
    return f"{where} is {value!r}, a {type(value).__name__}, and not a string or a whole number"
