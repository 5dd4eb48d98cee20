"""Inputs without labels, for prediction: read and decoded exactly as the training data is."""

from dataclasses import dataclass
from pathlib import Path

from contune.errors import DataError
from contune.stream.inputs import Decoded, DecodedCache, Inputs
from contune.stream.modality import file_modality, file_suffixes, find_modality
from contune.stream.read.columns import Columns, unlabelled_rows
from contune.stream.read.folder import Files, list_files
from contune.stream.read.rows import BadRow, Row, as_inputs, settle_bad_rows
from contune.stream.read.tables import SUFFIXES as TABLE_SUFFIXES
from contune.stream.read.tables import read_table
from contune.stream.read.validate import decode_rows


@dataclass(frozen=True, eq=False)
class UnlabelledInputs:
    """Texts or RGB images in source order; `ids` are row numbers from 0 and `places` say where each one is.

    `notes` list the bad rows that were left out.
    """

    inputs: Inputs
    ids: tuple[int, ...]
    places: tuple[str, ...]
    modality: str
    notes: tuple[str, ...] = ()


def read_inputs(
    path: Path,
    *,
    text: str | None = None,
    image: str | None = None,
    skip_bad: bool = False,
    objective: str = "classify",
) -> UnlabelledInputs:
    """Read a table file, one image, or a folder with images directly in it.

    `text` and `image` name the input column of a table; it is found by its usual names otherwise, those of rows of words
    where `objective` is tag. Raises DataError for a file that cannot be read and, unless `skip_bad`, for the first bad row.
    """
    if path.is_dir() or file_modality(path.name) is not None:
        modality, rows, bad = _file_rows(path)
    else:
        if not path.name.lower().endswith(TABLE_SUFFIXES):
            raise DataError(
                f"{path} is no file type that can be read; allowed are {', '.join(TABLE_SUFFIXES + file_suffixes())} "
                "and folders of images"
            )
        named = ("text", (text,)) if text is not None else ("image", (image,)) if image is not None else None
        modality, rows, bad = unlabelled_rows(read_table(path), Columns(input=named, objective=objective))
    rows, unreadable = decode_rows(rows, find_modality(modality))
    notes = settle_bad_rows([*bad, *unreadable], skip_bad=skip_bad)
    if not rows:
        raise DataError(f"{path} holds no usable input; give at least one")
    return UnlabelledInputs(
        as_inputs(rows), tuple(row.id for row in rows), tuple(str(row.place) for row in rows), modality, notes
    )


def _file_rows(path: Path) -> tuple[str, list[Row], list[BadRow]]:
    """Files that are one input each."""
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path")
    paths = list_files(path) if path.is_dir() else [path]
    modality = next((found for file in paths if (found := file_modality(file.name))), find_modality("image"))
    files = Files()
    inputs = Decoded(files, modality, DecodedCache())
    for file in paths:
        files.append(file)
    return modality.name, [Row(inputs, at, "", None, at, files.place) for at in range(len(files))], []
