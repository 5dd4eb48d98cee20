"""What arrives: examples, tasks and streams, all immutable and free of any model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from contune.errors import DataError

Modality = Literal["text", "image", "language"]
Kind = Literal["class-incremental", "domain-incremental", "task-incremental", "language"]
Image = NDArray[np.uint8]
Inputs = Sequence[Any]  # of texts, of images, or of exchanges


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
        return Examples(inputs, self.labels[chosen], self.ids[chosen], self.modality)

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
        return digest.hexdigest()


def joined_examples(parts: Sequence[Examples]) -> Examples:
    """Several sets of examples one after the other; what their labels mean is for the caller to keep."""
    inputs = [item for part in parts for item in part.inputs]
    labels = np.concatenate([part.labels for part in parts])
    ids = np.concatenate([part.ids for part in parts])
    return Examples(inputs, labels, ids, parts[0].modality)


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
    (`domain-incremental`), new classes with the task named at prediction time (`task-incremental`), or what text is about
    and what is asked of it, learned and answered as text (`language`). `retention_sets` are asked and never learned.
    """

    name: str
    kind: Kind
    tasks: tuple[Task, ...]
    order_seed: int | None = None
    notes: tuple[str, ...] = ()
    retention_sets: tuple[Task, ...] = ()

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
        parts = [self.kind, *(task.content_hash() for task in self.tasks)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
