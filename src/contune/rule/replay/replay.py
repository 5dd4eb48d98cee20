"""Replay: rows from a buffer of finished tasks join every step (experience replay, arXiv 1902.10486)."""

from collections.abc import Mapping
from typing import Annotated, Literal, final

from contune.contract.context import Context
from contune.contract.data import Dataset, Selection
from contune.contract.parts import Rule
from contune.contract.randomness import numpy_generator
from contune.contract.state import State
from contune.errors import ConfigError
from contune.rule.replay.buffer import Rehearsal, offered


def check_sizes(size: int, batch_size: int) -> None:
    """Refuse a buffer or a draw of a negative size."""
    if size < 0 or batch_size < 1:
        raise ConfigError(f"size is {size} and batch_size {batch_size}; give size at least 0 and batch_size at least 1")


def draw(buffer: Dataset, count: int, context: Context, place: tuple[str, int, int], weight: float | None) -> Selection:
    """`count` rows of the buffer without repetition, by the seed and the place in the run alone."""
    purpose, epoch, step = place
    generator = numpy_generator(context.task.settings.seed, purpose, context.task.index, epoch, step)
    rows = generator.choice(len(buffer), size=min(count, len(buffer)), replace=False)
    return Selection(buffer, rows, weight)


def replayed(ratio: float, rows: int) -> int:
    """How many replayed rows beside a task's `rows` make up `ratio` of the step (arXiv 2403.08763, section 5).

    >>> replayed(0.25, 24), replayed(0.05, 32), replayed(0.0, 8)
    (8, 2, 0)
    """
    return round(ratio / (1 - ratio) * rows)


@final
class Replay(Rule):
    """Keeps examples of finished tasks and mixes some of them into every step (arXiv 1902.10486; `ratio`: 2403.08763).

    A reservoir keeps every example seen with equal probability, `class-balanced` equal shares a class. Examples enter
    at the end of their task, so a task is never replayed to itself.

    Memory: the examples.
    Compute: up to twice a step where as many old as new rows are learned.
    """

    name = "replay"

    def __init__(
        self,
        *,
        size: Annotated[int, "most examples kept, of all finished tasks together"] = 500,
        batch_size: Annotated[int, "old examples that join every step"] = 32,
        choice: Annotated[Literal["reservoir", "class-balanced"], "every example alike, or every class"] = "reservoir",
        weight: Annotated[float | None, "weight of old rows' own mean; null: one mean of old and new", "paper"] = None,
        ratio: Annotated[float | None, "share of old rows in a step, 0 to below 1; null: batch_size says"] = None,
    ) -> None:
        check_sizes(size, batch_size)
        if ratio is not None and not 0 <= ratio < 1:
            raise ConfigError(
                f"ratio is {ratio}; give the share of replayed rows in a step, at least 0 and less than 1"
            )
        self.size, self.batch_size, self.choice, self.weight, self.ratio = size, batch_size, choice, weight, ratio
        self._kept = Rehearsal()

    def begin_task(self, context: Context) -> None:
        self._kept.prepare(context)

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        if self._kept.ready is None:
            return {}
        count = self.batch_size if self.ratio is None else replayed(self.ratio, context.task.settings.batch_size)
        return {"replay": draw(self._kept.ready, count, context, ("replay", epoch, step), self.weight)} if count else {}

    def after_chunk(self, context: Context) -> None:
        self._offer(context, 0 if self._kept.buffer is None else self._kept.buffer.offered)
        self._kept.prepare(context)

    def end_task(self, context: Context) -> None:
        self._offer(context)

    def _offer(self, context: Context, *place: int) -> None:
        """Offer the rows at hand to the buffer, by the seed, the task and the place."""
        data = context.task.data
        self._kept.offer(context, lambda kept, draw: offered(kept, data, self.size, self.choice, draw, None), *place)

    def state(self) -> State:
        return self._kept.state()

    def load_state(self, state: State, context: Context) -> None:
        self._kept.load_state(state, context)
