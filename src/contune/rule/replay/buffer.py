"""The declared buffer: examples kept from finished tasks, with their columns, tasks and perhaps their logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from contune.backbone.backbone import Backbone
from contune.contract.context import Context
from contune.contract.data import Dataset, Rows
from contune.contract.randomness import numpy_generator
from contune.contract.state import State, examples_from_state, examples_state
from contune.stream.task import Examples, joined_examples


@final
@dataclass(frozen=True, eq=False)
class Buffer:
    """What is kept; `offered` counts every example that was ever offered.

    `labels` and `tasks` (n,) are head columns and task indices. `logits` (n, C) are scores at the time of keeping, NaN
    in columns that did not exist then; None where the rule needs none.
    """

    examples: Examples
    labels: Rows
    tasks: Rows
    offered: int = 0
    logits: Tensor | None = None

    @staticmethod
    def empty(modality: str) -> "Buffer":
        """Nothing kept yet."""
        none = np.zeros(0, dtype=np.int64)
        return Buffer(Examples([], none, none, modality), none, none)

    def __len__(self) -> int:
        return len(self.labels)

    def dataset(self, backbone: Backbone) -> Dataset:
        """The kept examples, ready for batches."""
        return Dataset.of(self.examples, backbone, self.labels, self.tasks)

    def state(self) -> State:
        """The buffer as tensors and JSON values."""
        inner = State.nested({"examples": examples_state(self.examples)})
        tensors = dict(inner.tensors)
        tensors |= {"columns": torch.from_numpy(self.labels), "tasks": torch.from_numpy(self.tasks)}
        if self.logits is not None:
            tensors["logits"] = self.logits
        return State(tensors, {**inner.values, "offered": self.offered})

    @staticmethod
    def from_state(state: State) -> "Buffer":
        """The buffer that `state` put away."""
        labels, tasks = state.tensors["columns"].numpy(), state.tensors["tasks"].numpy()
        examples = examples_from_state(state.inner("examples"))
        return Buffer(examples, labels, tasks, int(state.values["offered"]), state.tensors.get("logits"))


@final
class Rehearsal:
    """A buffer from task to task: offered each task when it ends, and ready for batches from the next task on.

    `purpose` names the draw that decides who is kept.
    """

    def __init__(self, purpose: str = "buffer") -> None:
        self._purpose = purpose
        self.buffer: Buffer | None = None
        self.ready: Dataset | None = None

    def prepare(self, context: Context) -> None:
        """Make ready what is kept; in the first task nothing is."""
        self.ready = self.buffer.dataset(context.model.backbone) if self.buffer else None

    def offer(self, context: Context, keep: Callable[[Buffer, np.random.Generator], Buffer], *place: int) -> None:
        """Let `keep` choose among what is kept and the task's own examples, by the seed, the task and the place alone."""
        generator = numpy_generator(context.task.settings.seed, self._purpose, context.task.index, *place)
        self.buffer = keep(self.buffer or Buffer.empty(context.model.backbone.modality), generator)

    def offer_reservoir(self, context: Context, size: int, logits: Tensor | None = None) -> None:
        """Keep `size` of all examples that were ever offered, each with the same probability."""
        self.offer(context, lambda kept, draw: offered(kept, context.task.data, size, "reservoir", draw, logits))

    def state(self) -> State:
        """The buffer, or nothing."""
        return State() if self.buffer is None else self.buffer.state()

    def load_state(self, state: State, context: Context) -> None:
        """Take back what `state` gave, and make it ready."""
        self.buffer = Buffer.from_state(state) if state.values else None
        self.prepare(context)


def reservoir(kept: int, offered: int, new: int, size: int, generator: np.random.Generator) -> list[int]:
    """Which of `kept` + `new` candidates fill the buffer after `new` more were offered (Vitter 1985, algorithm R).

    Candidates 0 to kept - 1 are those in the buffer, the rest the new ones in order. Each of all examples ever offered
    is in the buffer with the same probability, size / (offered + new).

    >>> reservoir(0, 0, 3, 5, np.random.default_rng(0))
    [0, 1, 2]
    """
    places = list(range(kept))
    for number in range(new):
        if len(places) < size:
            places.append(kept + number)
            continue
        place = int(generator.integers(offered + number + 1))
        if place < size:
            places[place] = kept + number
    return places


def class_balanced(labels: Rows, size: int, generator: np.random.Generator) -> list[int]:
    """Which candidates fill the buffer so that all classes have equal shares, as far as they have examples.

    >>> sorted(class_balanced(np.array([0, 0, 0, 0, 1]), 3, np.random.default_rng(0)))[-1]
    4
    """
    queues = [list(generator.permutation(np.flatnonzero(labels == label))) for label in np.unique(labels)]
    places: list[int] = []
    while len(places) < size and any(queues):
        for queue in queues:
            if queue and len(places) < size:
                places.append(int(queue.pop()))
    return sorted(places)


def offered(
    buffer: Buffer, dataset: Dataset, size: int, choice: str, generator: np.random.Generator, logits: Tensor | None
) -> Buffer:
    """The buffer after a data set was offered to it, in seeded order."""
    order = generator.permutation(len(dataset))
    examples = joined_examples([buffer.examples, dataset.examples.take(order)])
    labels = np.concatenate([buffer.labels, dataset.labels[order]])
    tasks = np.concatenate([buffer.tasks, dataset.tasks[order]])
    if choice == "reservoir":
        places: Sequence[int] = reservoir(len(buffer), buffer.offered, len(dataset), size, generator)
    else:
        places = class_balanced(labels, size, generator)
    rows = np.asarray(places, dtype=np.int64)
    both = (
        None
        if logits is None
        else padded_logits(buffer.logits, logits[torch.from_numpy(order)])[torch.from_numpy(rows)]
    )
    return Buffer(examples.take(rows), labels[rows], tasks[rows], buffer.offered + len(dataset), both)


def padded_logits(old: Tensor | None, new: Tensor) -> Tensor:
    """Old rows above new ones; columns that the old rows lack are NaN."""
    if old is None:
        return new
    pad = old.new_full((len(old), new.shape[1] - old.shape[1]), float("nan"))
    return torch.cat([torch.cat([old, pad], dim=1), new])
