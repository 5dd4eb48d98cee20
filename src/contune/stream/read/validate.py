"""Every input decoded once before anything is learned, so that a damaged one is found with its file and row."""

from collections.abc import Sequence

from contune.errors import DataError
from contune.stream.inputs import Decoded
from contune.stream.modality import Modality
from contune.stream.read.rows import BadRow, Row


def decode_rows(rows: Sequence[Row], modality: Modality) -> tuple[list[Row], list[BadRow]]:
    """The rows whose inputs can be decoded, and those whose inputs cannot; nothing is kept beyond the rows' own cache.

    Inputs whose decoding is cheap cannot fail it, as their values were checked when they were read.
    """
    if not modality.costly:
        return list(rows), []
    good: list[Row] = []
    bad: list[BadRow] = []
    for row in rows:
        if isinstance(row.inputs, Decoded):
            try:
                row.inputs[row.at]
            except DataError as error:
                reason = f"the {modality.name} cannot be read ({error})"
                bad.append(BadRow(row.place, reason, "replace or remove it"))
                continue
        good.append(row)
    return good, bad
