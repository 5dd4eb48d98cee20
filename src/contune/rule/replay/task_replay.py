"""Replay at a constant cost: every step mixes old rows in, drawn from a uniform old task (ConPET, arXiv 2309.14763)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, final

import numpy as np

from contune.contract.context import Context
from contune.contract.data import Dataset, Rows, Selection
from contune.contract.parts import Rule
from contune.contract.randomness import numpy_generator
from contune.contract.state import State
from contune.errors import ConfigError
from contune.rule.replay.buffer import Buffer, Rehearsal, class_balanced
from contune.stream.task import joined_examples


def old_beside(new: int, ratio: float) -> int:
    """How many old rows stand beside `new` ones where new : old is `ratio`; at least one.

    >>> old_beside(8, 1.0), old_beside(8, 3.0), old_beside(1, 4.0)
    (8, 3, 1)
    """
    return max(1, round(new / ratio))


def drawn_rows(tasks: Rows, count: int, generator: np.random.Generator) -> Rows:
    """`count` rows: each time a task, all equally likely, then one of its rows, all equally likely.

    >>> rows = drawn_rows(np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 7]), 1000, np.random.default_rng(0))
    >>> 400 < int((rows == 9).sum()) < 600
    True
    """
    groups = [np.flatnonzero(tasks == task) for task in np.unique(tasks)]
    chosen = generator.integers(len(groups), size=count)
    return np.array([groups[task][generator.integers(len(groups[task]))] for task in chosen.tolist()], dtype=np.int64)


def remembered(buffer: Buffer, dataset: Dataset, size: int | None, generator: np.random.Generator) -> Buffer:
    """The buffer with a task's examples, all of them, or `size` in equal shares of the tasks."""
    examples = joined_examples([buffer.examples, dataset.examples])
    labels = np.concatenate([buffer.labels, dataset.labels])
    tasks = np.concatenate([buffer.tasks, dataset.tasks])
    seen = buffer.offered + len(dataset)
    if size is None or size >= len(labels):
        return Buffer(examples, labels, tasks, seen)
    rows = np.array(class_balanced(tasks, size, generator), dtype=np.int64)
    return Buffer(examples.take(rows), labels[rows], tasks[rows], seen)


@final
class TaskReplay(Rule):
    """Keeps examples of finished tasks and adds old rows to every step, each of a uniform old task (arXiv 2309.14763).

    An old row is drawn by choosing a task uniformly and then one of its examples uniformly, so that small tasks come as
    often as large ones; one may come twice in a step. The paper bounds the cost of training and not what is kept.
    `weight` 0 lets old rows by without a loss, for a router that learns from them. With `train.batches` all steps have
    as many new rows and the ratio is exact; without, an epoch's shorter last step gets as many old rows as the others.

    Memory: the examples.
    Compute: 1 + 1 / `ratio` times a step.
    """

    name: ClassVar[str] = "task-replay"
    idle: ClassVar[Mapping[str, object]] = {"size": 0}

    def __init__(
        self,
        *,
        ratio: Annotated[float, "new rows for every old one in a step, above 0", "paper, section 3.2"] = 1.0,
        size: Annotated[int | None, "most examples kept, in equal shares of the tasks; null: all", "paper"] = None,
        weight: Annotated[float | None, "weight of old rows' own mean; null: one mean; 0: no loss of theirs"] = None,
    ) -> None:
        if not ratio > 0:
            raise ConfigError(f"ratio is {ratio}; give new rows per old row, above 0")
        if (size is not None and size < 0) or (weight is not None and weight < 0):
            raise ConfigError(f"size is {size} and weight {weight}; give numbers of at least 0, or null")
        self.ratio, self.size, self.weight = ratio, size, weight
        self._kept = Rehearsal("kept by task-replay")

    def begin_task(self, context: Context) -> None:
        self._kept.prepare(context)

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        if self._kept.ready is None:
            return {}
        count = old_beside(min(context.task.settings.batch_size, len(context.task.data)), self.ratio)
        generator = numpy_generator(context.task.settings.seed, self.name, context.task.index, epoch, step)
        return {
            self.name: Selection(self._kept.ready, drawn_rows(self._kept.ready.tasks, count, generator), self.weight)
        }

    def end_task(self, context: Context) -> None:
        self._kept.offer(context, lambda kept, draw: remembered(kept, context.task.data, self.size, draw))

    def state(self) -> State:
        return self._kept.state()

    def load_state(self, state: State, context: Context) -> None:
        self._kept.load_state(state, context)
