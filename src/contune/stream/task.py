"""What arrives: examples, tasks and streams, all immutable and free of any model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from contune.errors import DataError

Modality = Literal["text", "image", "language", "words"]
Kind = Literal["class-incremental", "domain-incremental", "task-incremental"]
Image = NDArray[np.uint8]
Inputs = Sequence[Any]  # of texts, of images, or of exchanges


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
    """Inputs with their labels: texts, RGB images of shape (height, width, 3) in uint8, or exchanges of language.

    `labels` (n,) are positions in the `class_names` of the task the examples belong to; `ids` (n,) name the examples
    within the stream's split and are what the prediction file quotes.
    """

    inputs: Inputs
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    modality: Modality
    targets: Targets | None = None

    def __post_init__(self) -> None:
        if not len(self.inputs) == len(self.labels) == len(self.ids):
            raise DataError(
                f"{len(self.inputs)} inputs, {len(self.labels)} labels and {len(self.ids)} ids; "
                "give one of each for every example"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: NDArray[np.int64] | Sequence[int]) -> "Examples":
        """The examples at `rows`, in that order."""
        chosen = np.asarray(rows, dtype=np.int64)
        inputs = [self.inputs[int(row)] for row in chosen]
        targets = None if self.targets is None else self.targets.take(chosen)
        return Examples(inputs, self.labels[chosen], self.ids[chosen], self.modality, targets)

    def content_hash(self) -> str:
        """Hex sha256 over every input and label in order."""
        digest = hashlib.sha256(self.modality.encode())
        for item, label in zip(self.inputs, self.labels.tolist(), strict=True):
            if isinstance(item, np.ndarray):
                data, shape = np.ascontiguousarray(item).tobytes(), str(item.shape)
            else:
                data, shape = str(item).encode(), "text"
            digest.update(f"|{label}|{shape}|{len(data)}|".encode())
            digest.update(data)
        if self.targets is not None:
            digest.update(self.targets.offsets.tobytes())
            digest.update(self.targets.values.tobytes())
        return digest.hexdigest()


def joined_examples(parts: Sequence[Examples]) -> Examples:
    """Several sets of examples one after the other; what their labels mean is for the caller to keep."""
    inputs = [item for part in parts for item in part.inputs]
    labels = np.concatenate([part.labels for part in parts])
    ids = np.concatenate([part.ids for part in parts])
    return Examples(inputs, labels, ids, parts[0].modality, joined_targets([part.targets for part in parts]))


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

    @property
    def modality(self) -> Modality:
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
