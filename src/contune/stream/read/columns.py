"""From a raw table to checked rows: which columns hold input, label and domain, and what is wrong with a value."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, final

from contune.errors import DataError, did_you_mean
from contune.stream.inputs import Decoded, DecodedCache, Inputs
from contune.stream.modality import Modality, find_modality, is_unicode, modalities
from contune.stream.read.answers import ANSWERS, Answers
from contune.stream.read.rows import BadRow, Place, RawTable, Row, Split
from contune.stream.read.spool import Spool

LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "intent")

FILL_IN = "fill it in or remove the row"


@dataclass(frozen=True)
class Columns:
    """Which columns to read; None where they are to be found by their usual names. `input` is (modality, its columns).

    `objective` says what the label's column holds: a class, or another kind of answer.
    """

    input: tuple[str, tuple[str, ...]] | None = None
    label: str | None = None
    group: str | None = None
    objective: str = "classify"


@final
class Names:
    """The values of a label or domain column as names, and what is wrong with those that are none."""

    def __init__(self, table: RawTable, column: str, role: str) -> None:
        self.column, self.role = column, role
        self.declared = table.class_names.get(column)
        self._known: dict[tuple[type, object], str | None] = {}

    def of(self, value: object) -> str | None:
        """The name, the same object for equal values; None where it is none."""
        key = (type(value), value) if isinstance(value, str | int | None) else (type(value), repr(value))
        if key not in self._known:
            self._known[key] = _name(value, self.declared)
        return self._known[key]

    def reason(self, value: object) -> str:
        """Why a value is no name, as a clause."""
        return _name_reason(value, self.column, self.role, self.declared)

    @property
    def numeric(self) -> bool:
        """Whether every value so far was a whole number, whose name nothing declares."""
        return self.declared is None and all(kind in (int, type(None)) for kind, _ in self._known)


@final
@dataclass(frozen=True, eq=False)
class Again(Sequence[object]):
    """Inputs that are asked for again at their owner."""

    of: Callable[[int], object]
    taken: "Taken"

    def __len__(self) -> int:
        return len(self.taken.entries)

    def __getitem__(self, at: Any) -> Any:
        found = self.taken.entries[at]
        return self.of(found) if isinstance(found, int) else [self.of(entry) for entry in found]


@final
class Taken:
    """The inputs of a table's good rows, put away as they come, and where each of them is."""

    def __init__(self, table: RawTable, modality: Modality, cache: DecodedCache | None, *, objects: bool) -> None:
        self._table, self._modality = table, modality
        self.entries: list[int] | range = range(0)
        self._values: Spool | list[object] | Again
        if table.again is not None:
            self._values = Again(table.again, self)
        else:
            self._values = [] if objects else Spool()
        self.inputs: Inputs = Decoded(self._values, modality, cache if modality.costly else None)

    def append(self, entry: int, value: object) -> int:
        """Put the value of a row away; returns its number."""
        number = len(self.entries)
        if isinstance(self._values, Spool):
            self._values.append(self._modality.pack(value))
        elif isinstance(self._values, list):
            self._values.append(value)
        if isinstance(self.entries, range) and entry == number:
            self.entries = range(number + 1)
        else:  # a bad row came before
            self.entries = [*self.entries] if isinstance(self.entries, range) else self.entries
            self.entries.append(entry)
        return number

    def place(self, number: int) -> Place:
        """Where the row of a number is."""
        return self._table.place(self.entries[number])


def split_from_table(
    table: RawTable,
    columns: Columns,
    *,
    first_id: int = 0,
    group: str | None = None,
    cache: DecodedCache | None = None,
) -> Split:
    """Check every row of a table, in one pass; their inputs wait in a spool until they are asked for.

    Raises DataError where a column is missing; bad rows are returned, not raised.
    """
    modality, input_columns = _input_columns(table, columns)
    answers = ANSWERS.get(columns.objective)
    usual = LABEL_COLUMNS if answers is None else answers.columns
    label_column = _find_column(table, "label", columns.label, [name for name in usual if name not in input_columns])
    label_names = Names(table, label_column, "label")
    answer_of, why = (label_names.of, label_names.reason) if answers is None else in_column(answers, label_column)
    wanted, domains = [*input_columns, label_column], None
    if columns.group is not None:
        wanted.append(_find_column(table, "domain", columns.group, ()))
        domains = Names(table, columns.group, "domain")
    kept = Taken(table, modality, cache, objects=input_columns[0] in table.objects)
    shown, width = _shown(input_columns), len(input_columns)
    rows: list[Row] = []
    bad = list(table.broken)
    for entry, values in enumerate(table.rows(wanted)):
        value = table.as_input(values[0]) if width == 1 else tuple(map(table.as_input, values[:width]))
        label = answer_of(values[width])
        one_group = group if domains is None else domains.of(values[-1])
        reason = modality.refuse(value, shown)
        if reason is None and label is None:
            reason = why(values[width])
        if reason is None and domains is not None and one_group is None:
            reason = domains.reason(values[-1])
        if reason is not None:
            bad.append(BadRow(table.place(entry), reason, FILL_IN))
        else:
            at = kept.append(entry, value)
            number = first_id + table.positions[entry]
            if answers is None:
                rows.append(Row(kept.inputs, at, cast(str, label), one_group, number, kept.place))
            else:
                rows.append(Row(kept.inputs, at, "", one_group, number, kept.place, label))
    bad.sort(key=lambda row: row.place.number)
    group_names = table.class_names.get(columns.group) if columns.group is not None else None
    names = table.class_names.get(label_column)
    return Split(rows, bad, table.total, names, group_names, label_names.numeric, modality.name)


def in_column(answers: Answers, column: str) -> tuple[Callable[[object], Any], Callable[[object], str]]:
    """What a cell of this column answers, and why one answers nothing."""
    return answers.of, partial(answers.reason, column=column)


def unlabelled_rows(table: RawTable, columns: Columns) -> tuple[str, list[Row], list[BadRow]]:
    """The modality of a table's inputs, its good rows without labels, and the bad ones."""
    modality, input_columns = _input_columns(table, columns)
    kept = Taken(table, modality, None, objects=False)
    rows: list[Row] = []
    bad = list(table.broken)
    for entry, values in enumerate(table.rows(input_columns)):
        value = table.as_input(values[0]) if len(values) == 1 else tuple(map(table.as_input, values))
        reason = modality.refuse(value, _shown(input_columns))
        if reason is not None:
            bad.append(BadRow(table.place(entry), reason, FILL_IN))
        else:
            rows.append(Row(kept.inputs, kept.append(entry, value), "", None, table.positions[entry], kept.place))
    return modality.name, rows, sorted(bad, key=lambda row: row.place.number)


def _input_columns(table: RawTable, columns: Columns) -> tuple[Modality, tuple[str, ...]]:
    if columns.input is not None:
        modality = find_modality(columns.input[0])
        for column in columns.input[1]:
            _find_column(table, modality.name, column, ())
            refused = modality.refuse_column(column, (*table.binary, *table.objects))
            if refused is not None:
                raise DataError(f"{table.source}: {refused}")
        return modality, columns.input[1]
    reads = ANSWERS[columns.objective].reads if columns.objective in ANSWERS else None
    known = [
        one for one in modalities().values() if one.columns and (one.name == reads or not (reads or one.asked_for))
    ]
    fitting = [(one, found) for one in known if (found := _usual(table, one)) is not None]
    if len(fitting) > 1:
        (one, first), (other, second) = fitting[:2]
        raise DataError(
            f"{table.source} has both {_a(other)} column {second[0]!r} and {_a(one)} column {first[0]!r}; say which one "
            f"is the input with {_key(other)} or {_key(one)}"
        )
    if not fitting:
        lacking = " and ".join(f"no {one.name} column ({', '.join(one.columns)})" for one in reversed(known))
        keys = " or ".join(_key(one) for one in reversed(known))
        raise DataError(
            f"{table.source} has {lacking}; its columns are {_listed(table.columns)}; name the right one with {keys}"
        )
    modality, found = fitting[0]
    for column in found:
        _find_column(table, modality.name, column, ())
    return modality, found


def _usual(table: RawTable, modality: Modality) -> tuple[str, ...] | None:
    """The columns with a modality's usual names, whose Python objects (if any) are its own."""
    binary = {*table.binary, *(column for column, name in table.objects.items() if find_modality(name).binary)}
    found = modality.find(table.columns, [column for column in table.columns if column in binary])
    foreign = found is not None and any(table.objects.get(column, modality.name) != modality.name for column in found)
    return None if foreign else found


def _a(modality: Modality) -> str:
    return f"{'an' if modality.name[0] in 'aeiou' else 'a'} {modality.name}"


def _key(modality: Modality) -> str:
    """The key that names the column of a modality."""
    return f"data.{modality.name}" if modality.name in ("text", "image") else f"data.input ({modality.name}: …)"


def _shown(columns: Sequence[str]) -> str:
    """How sentences name the columns of an input.

    >>> _shown(["text"]), _shown("xy")
    ("column 'text'", "columns 'x', 'y'")
    """
    return f"column{'s' if len(columns) > 1 else ''} {', '.join(map(repr, columns))}"


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


def _name(value: object, declared: tuple[str, ...] | None) -> str | None:
    if declared is not None:
        return declared[value] if isinstance(value, int) and 0 <= value < len(declared) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) and value.strip() and is_unicode(value) else None


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
