"""Inputs without labels, for prediction: read and decoded exactly as the training data is."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from contune.errors import DataError
from contune.stream.read.columns import FILL_IN, Columns, input_values
from contune.stream.read.folder import list_images
from contune.stream.read.images import SUFFIXES as IMAGE_SUFFIXES
from contune.stream.read.images import as_inputs, decode_rows
from contune.stream.read.rows import BadRow, Place, Row, settle_bad_rows
from contune.stream.read.tables import SUFFIXES as TABLE_SUFFIXES
from contune.stream.read.tables import read_table
from contune.stream.task import Inputs, Modality


@dataclass(frozen=True, eq=False)
class UnlabelledInputs:
    """Texts or RGB images in source order; `ids` are row numbers from 0 and `places` say where each one is.

    `notes` list the bad rows that were left out.
    """

    inputs: Inputs
    ids: tuple[int, ...]
    places: tuple[str, ...]
    modality: Modality
    notes: tuple[str, ...] = ()


def read_inputs(
    path: Path, *, text: str | None = None, image: str | None = None, skip_bad: bool = False
) -> UnlabelledInputs:
    """Read a table file, one image, or a folder with images directly in it.

    `text` and `image` name the input column of a table; it is found by its usual names otherwise. Raises DataError for
    a file that cannot be read and, unless `skip_bad`, for the first bad row.
    """
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        modality, rows, bad = _image_rows(path)
    else:
        modality, rows, bad = _table_rows(path, Columns(text=text, image=image))
    if modality == "image":
        rows, unreadable = decode_rows(rows)
        bad = [*bad, *unreadable]
    notes = settle_bad_rows(bad, skip_bad=skip_bad)
    if not rows:
        raise DataError(f"{path} holds no usable input; give at least one")
    return UnlabelledInputs(
        as_inputs(rows), tuple(row.id for row in rows), tuple(str(row.place) for row in rows), modality, notes
    )


def _image_rows(path: Path) -> tuple[Modality, list[Row], list[BadRow]]:
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path")
    paths = [path] if not path.is_dir() else list_images(path)
    rows = [Row(file.read_bytes(), "", None, at, Place(str(file))) for at, file in enumerate(paths)]
    return "image", rows, []


def _table_rows(path: Path, columns: Columns) -> tuple[Modality, list[Row], list[BadRow]]:
    if not path.name.lower().endswith(TABLE_SUFFIXES):
        raise DataError(
            f"{path} is no file type that can be read; allowed are {', '.join(TABLE_SUFFIXES + IMAGE_SUFFIXES)} "
            "and folders of images"
        )
    table = read_table(path)
    modality, values, reasons = input_values(table, columns)
    rows: list[Row] = []
    bad = list(table.broken)
    for at, value in enumerate(values):
        place = Place(table.source, table.unit, table.numbers[at])
        if at in reasons:
            bad.append(BadRow(place, reasons[at], FILL_IN))
        else:
            rows.append(Row(cast(str | bytes, value), "", None, table.positions[at], place))
    return modality, rows, sorted(bad, key=lambda row: row.place.number)
