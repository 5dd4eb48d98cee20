"""What every reader gives: rows with their place, and bad rows with the reason. One rule decides about bad rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from contune.errors import DataError
from contune.stream.inputs import Indexed, Inputs
from contune.stream.modality import find_modality


class Place(NamedTuple):
    """Where a row is: a file with a line or row number from 1, or a file that is itself the row."""

    source: str
    unit: str = ""
    number: int = 0

    def __str__(self) -> str:
        return f"{self.source}, {self.unit} {self.number}" if self.unit else self.source


class Row(NamedTuple):
    """One good row: its input is `inputs[at]` and lies at `places(at)`; with its label's name and (if any) its group's.

    `target` is the answer where it is no single class.
    """

    inputs: Inputs
    at: int
    label: str
    group: str | None
    id: int
    places: Callable[[int], Place]
    target: Any = None

    @property
    def place(self) -> Place:
        """Where the row is."""
        return self.places(self.at)


class BadRow(NamedTuple):
    """One row that cannot be used, why (a clause), and what would help."""

    place: Place
    reason: str
    advice: str


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of train, test or validation, in source order. `total` counts bad rows too, so ids stay put.

    `names` are the label names the data declares, in its order; None where it declares none. `numeric` says that
    every label was a whole number in the source, so that undeclared names sort as numbers.
    """

    rows: Sequence[Row]
    bad: Sequence[BadRow] = ()
    total: int = 0
    names: tuple[str, ...] | None = None
    group_names: tuple[str, ...] | None = None
    numeric: bool = False
    modality: str = "text"


@dataclass(frozen=True, eq=False)
class RawTable:
    """A table as it lies in a file: `rows(columns)` gives the values of some columns row by row, in one more pass.

    There is one of them per entry of `numbers`, what a reader of the file would count (lines or rows from 1), and of
    `positions`, the row ids from 0; `broken` rows have a position but no values. `binary` columns hold bytes, and
    columns of `objects` Python objects of the modality they are filed under. `again` gives the input of an entry once
    more, where it need not be put away. `untyped` tables give a column of whole numbers as numbers, though a text is all
    that the file holds.
    """

    source: str
    unit: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[tuple[object, ...]]]
    numbers: Sequence[int]
    positions: Sequence[int]
    total: int
    broken: Sequence[BadRow] = ()
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    binary: tuple[str, ...] = ()
    objects: dict[str, str] = field(default_factory=dict)
    again: Callable[[int], object] | None = None
    untyped: bool = False

    def as_input(self, value: object) -> object:
        """A value of a column that holds inputs or texts: as it was written, where the file has no types."""
        return str(value) if self.untyped and isinstance(value, int) else value

    def read(self, column: str) -> Sequence[object]:
        """All values of one column, in memory."""
        return [value for (value,) in self.rows((column,))]

    def place(self, entry: int) -> Place:
        """Where a row with values is."""
        return Place(self.source, self.unit, self.numbers[entry])


def join_splits(parts: Sequence[Split], *, same_names: bool = True) -> Split:
    """One split from several, in their order. Raises DataError where they do not agree on what they hold.

    With `same_names` all must declare the same label names; without, their declared names are strung together.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.modality != first.modality:
            nouns = [find_modality(split.modality).noun for split in (first, part)]
            raise DataError(f"some files hold {nouns[0]} and others {nouns[1]}; a stream has one kind of input")
        if same_names and part.names != first.names:
            raise DataError(
                "the files declare different label names or orders in their metadata; "
                "write them with the same class labels"
            )
    declared = [part.names for part in parts if part.names is not None]
    names = tuple(dict.fromkeys(name for part in declared for name in part)) if len(declared) == len(parts) else None
    return replace(
        first,
        rows=[row for part in parts for row in part.rows],
        bad=[row for part in parts for row in part.bad],
        total=sum(part.total for part in parts),
        names=names,
        numeric=all(part.numeric for part in parts),
    )


def as_inputs(rows: Sequence[Row]) -> Inputs:
    """The inputs of rows: found when asked, or a list where all are in memory anyway."""
    if all(isinstance(row.inputs, list) for row in rows):
        return [row.inputs[row.at] for row in rows]
    numbers: dict[int, int] = {}
    sources: list[Inputs] = []
    owners = np.zeros(len(rows), dtype=np.int32)
    for place, row in enumerate(rows):
        if id(row.inputs) not in numbers:
            numbers[id(row.inputs)] = len(sources)
            sources.append(row.inputs)
        owners[place] = numbers[id(row.inputs)]
    at = np.fromiter((row.at for row in rows), dtype=np.int64, count=len(rows))
    return Indexed(tuple(sources), owners, at)


def settle_bad_rows(bad: Sequence[BadRow], *, skip_bad: bool) -> tuple[str, ...]:
    """Notes that list the rows left out, one sentence a file and reason; without `skip_bad`, DataError at the first."""
    if not bad:
        return ()
    if not skip_bad:
        first = bad[0]
        more = f" ({len(bad) - 1} more bad {'row' if len(bad) == 2 else 'rows'} after it)" if len(bad) > 1 else ""
        raise DataError(
            f"{first.place}: {first.reason}; {first.advice}, or set stream.skip_bad: true to leave such rows out{more}"
        )
    grouped: dict[tuple[str, str, str], list[Place]] = {}
    for row in bad:
        source = row.place.source if row.place.unit else ""
        grouped.setdefault((source, row.place.unit, row.reason), []).append(row.place)
    return tuple(_note(*key, places) for key, places in grouped.items())


def _note(source: str, unit: str, reason: str, places: Sequence[Place]) -> str:
    shown = [str(place.number) if unit else place.source for place in places[:5]]
    if len(places) > len(shown):
        shown.append(f"and {len(places) - len(shown)} more")
    rows = "1 row" if len(places) == 1 else f"{len(places)} rows"
    where = f" of {source}" if source else ""
    return f"left out {rows}{where} because {reason}: {unit + ' ' if unit else ''}{', '.join(shown)}"
