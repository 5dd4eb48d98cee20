"""What arrives: examples, tasks and streams, all immutable and free of any model."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from contune.errors import DataError
from contune.stream.inputs import Inputs, joined, taken
from contune.stream.modality import find_modality

Kind = Literal["class-incremental", "domain-incremental", "task-incremental"]


def names_tasks(kind: Kind) -> bool:
    """Whether streams of a kind say which task an example belongs to also when it is to be answered.

    >>> names_tasks("task-incremental"), names_tasks("class-incremental")
    (True, False)
    """
    return kind == "task-incremental"


Image = NDArray[np.uint8]


@final
@dataclass(frozen=True, eq=False)
class Targets:
    """What is to be answered where one label an example does not say it: example i has `values[offsets[i]:offsets[i + 1]]`.

    Whole numbers are places of names (labels, or a tag for each word), other numbers are values, one for each name.

    >>> some = Targets.of_rows([[0, 2], [], [1]])
    >>> some.take([2, 0]).of(1).tolist()
    [0, 2]
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    @staticmethod
    def of_rows(rows: Sequence[Sequence[Any]], *, numbers: bool = False) -> "Targets":
        """Targets from a list for each example: places of names, or with `numbers` values, None where one is missing."""
        kind: Any = np.float64 if numbers else np.int64
        each = [np.array([np.nan if x is None else x for x in row], dtype=kind) for row in rows]
        offsets = np.cumsum([0, *(len(row) for row in each)]).astype(np.int64)
        return Targets(np.concatenate([np.zeros(0, kind), *each]), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, row: int) -> NDArray[Any]:
        """What example `row` has."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: NDArray[np.int64] | Sequence[int]) -> "Targets":
        """The targets of the examples at `rows`, in that order."""
        each = [self.of(int(row)) for row in rows]
        offsets = np.cumsum([0, *(len(values) for values in each)]).astype(np.int64)
        return Targets(np.concatenate([self.values[:0], *each]), offsets)

    def mapped(self, places: NDArray[np.int64]) -> "Targets":
        """The same with other places for the names: names are renumbered, values move to the place of their name."""
        if self.values.dtype.kind == "i":
            return Targets(places[self.values], self.offsets)
        width = int(places.max(initial=-1)) + 1
        wide = np.full((len(self), width), np.nan)
        for row in range(len(self)):
            wide[row, places] = self.of(row)
        return Targets(wide.ravel(), np.arange(len(self) + 1, dtype=np.int64) * width)


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs with their labels: texts, RGB images of shape (height, width, 3) in uint8, conversations (`contune.modality`).

    `inputs` may decode each of them when it is asked for. `labels` (n,) are positions in the `class_names` of the task the
    examples belong to; `ids` (n,) name the examples within the stream's split and are what the prediction file quotes.
    """

    inputs: Inputs
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    modality: str
    targets: Targets | None = None

    def __post_init__(self) -> None:
        find_modality(self.modality)
        if not len(self.inputs) == len(self.labels) == len(self.ids):
            raise DataError(
                f"{len(self.inputs)} inputs, {len(self.labels)} labels and {len(self.ids)} ids; "
                "give one of each for every example"
            )
        for name in ("labels", "ids"):
            object.__setattr__(self, name, whole_numbers(getattr(self, name), name))

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: NDArray[np.int64] | Sequence[int]) -> "Examples":
        """The examples at `rows`, in that order."""
        chosen = np.asarray(rows, dtype=np.int64)
        targets = None if self.targets is None else self.targets.take(chosen)
        inputs = taken(self.inputs, chosen)
        return Examples(inputs, self.labels[chosen], self.ids[chosen], self.modality, targets)

    def content_hash(self) -> str:
        """Hex sha256 over every input and label in order; every input is decoded the first time."""
        return self._content_hash

    @cached_property
    def _content_hash(self) -> str:
        modality = find_modality(self.modality)
        digest = hashlib.sha256(modality.hash_name.encode())
        for item, label in zip(self.inputs, self.labels.tolist(), strict=True):
            data, shape = modality.content(item)
            digest.update(f"|{label}|{'text' if shape is None else shape}|{len(data)}|".encode())
            digest.update(data)
        if self.targets is not None:
            digest.update(self.targets.offsets.tobytes())
            digest.update(self.targets.values.tobytes())
        return digest.hexdigest()


def whole_numbers(values: NDArray[np.int64] | Sequence[int], what: str) -> NDArray[np.int64]:
    """The values as int64 (n,); raises DataError with the first that is no whole number from 0 on.

    >>> whole_numbers([0, 2], "labels").tolist()
    [0, 2]
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{what} have the shape {array.shape}; give one whole number for every example")
    if len(array) and array.dtype.kind not in "iu":
        first = array[0].item() if hasattr(array[0], "item") else array[0]
        raise DataError(
            f"{what} are of type {array.dtype}, the first is {first!r}; give whole numbers: labels are positions in the "
            "task's class_names, from 0"
        )
    wrong = np.flatnonzero(np.less(array, 0)) if len(array) else array
    if len(wrong):
        raise DataError(
            f"{what}[{wrong[0]}] is {array[wrong[0]]}; give whole numbers from 0, and leave examples without a label out"
        )
    return array.astype(np.int64, copy=False)


def joined_examples(parts: Sequence[Examples]) -> Examples:
    """Several sets of examples one after the other; what their labels mean is for the caller to keep."""
    labels = np.concatenate([part.labels for part in parts])
    ids = np.concatenate([part.ids for part in parts])
    inputs, targets = joined([part.inputs for part in parts]), joined_targets([part.targets for part in parts])
    return Examples(inputs, labels, ids, parts[0].modality, targets)


def joined_targets(parts: Sequence[Targets | None]) -> Targets | None:
    """Targets one after the other; parts without examples may have none."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    ends = np.cumsum([0, *(int(part.offsets[-1]) for part in there)])
    offsets = [part.offsets[1:] + end for part, end in zip(there, ends, strict=False)]
    return Targets(np.concatenate([part.values for part in there]), np.concatenate([np.zeros(1, np.int64), *offsets]))


@dataclass(frozen=True, eq=False)
class Task:
    """One stretch of a stream: what may be learned now (`train`) and what measures it (`test`).

    `class_names` names the label positions of this task's own examples. A class that came in an earlier task under the
    same name is the same class.
    """

    name: str
    class_names: tuple[str, ...]
    train: Examples
    test: Examples
    validation: Examples | None = None

    def __post_init__(self) -> None:
        for split, examples in (("train", self.train), ("test", self.test), ("validation", self.validation)):
            if examples is None:
                continue
            beyond = np.flatnonzero(examples.labels >= len(self.class_names))
            if len(beyond):
                raise DataError(
                    f"label {examples.labels[beyond[0]]} of {split} example {beyond[0]} is beyond the "
                    f"{len(self.class_names)} class_names of task {self.name!r}; labels are positions in them, from 0"
                )

    def content_hash(self) -> str:
        """Hex sha256 over names, classes and every example of every split."""
        parts = [self.name, *self.class_names, self.train.content_hash(), self.test.content_hash()]
        if self.validation is not None:
            parts.append(self.validation.content_hash())
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks in the order they arrive.

    `kind` says what changes from task to task: new classes (`class-incremental`), the same classes from new domains
    (`domain-incremental`), or new classes with the task named at prediction time (`task-incremental`). `objective` names
    what an answer is. `retention_sets` are asked and never learned.
    """

    name: str
    kind: Kind
    tasks: tuple[Task, ...]
    order_seed: int | None = None
    notes: tuple[str, ...] = ()
    retention_sets: tuple[Task, ...] = ()
    objective: str = "classify"

    @classmethod
    def of(cls, train: Any, test: Any, validation: Any = None, **keys: Any) -> "Stream":
        """A stream of data that is in Python: checked, ordered and cut as the same rows in files would be.

        Each of `train`, `test` and `validation` is a list of mappings, a pandas data frame, a `datasets.Dataset`, a pair of
        lists (inputs, labels), or a data set of torch's kind that gives (input, label) by number, always the same ones.
        Columns are found by their usual names, or named with `text`, `image`, `input` and `label`. All other keys are those
        of `StreamConfig`: `tasks`, `kind`, `by`, `order_seed` and so on, among them `validation` as a share; `name` is what
        the stream is called. Raises DataError for the first bad row and ConfigError where the keys do not fit.

        >>> rows = [{"text": f"{word} {number}", "label": word} for number in range(2) for word in ("cat", "dog")]
        >>> [task.class_names for task in Stream.of(rows, rows, tasks=2).tasks]
        [('cat',), ('dog',)]
        """
        # Found by name: what makes streams of Python data makes this class.
        stream_of: Callable[..., Stream] = import_module("contune.stream.python").stream_of

        return stream_of(train, test, validation, **keys)

    @property
    def modality(self) -> str:
        """What the inputs are; the same in every task."""
        return self.tasks[0].train.modality

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes in order of first arrival."""
        return tuple(dict.fromkeys(name for task in self.tasks for name in task.class_names))

    def content_hash(self) -> str:
        """Hex sha256 of the whole stream: kind, order, names and every example; every example is read the first time."""
        return self._content_hash

    @cached_property
    def _content_hash(self) -> str:
        own = [] if self.objective == "classify" else [self.objective]
        parts = [self.kind, *own, *(task.content_hash() for task in self.tasks)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
