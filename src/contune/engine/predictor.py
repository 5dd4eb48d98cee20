"""What one asks of a learner and what one gets: answers alone, and scores of tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from contune.contract.objective import Prediction
from contune.stream.inputs import Inputs

if TYPE_CHECKING:
    from contune.engine.learner import Learner


@final
class Predictor:
    """Answers and does nothing else. Several threads may ask at once; they are answered one after the other.

    It keeps nothing of what it was asked, and answers as its learner stands at the time.
    """

    def __init__(self, learner: "Learner") -> None:
        self._learner = learner

    def predict(self, inputs: Inputs, *, task: int | None = None) -> list[Prediction]:
        """As `Learner.predict`."""
        return self._learner.predict(inputs, task=task)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names there are to answer with."""
        return tuple(self._learner.class_names)

    def __repr__(self) -> str:
        return f"Predictor({self._learner!r})"


@final
@dataclass(frozen=True)
class Scores:
    """A measure on the test examples of tasks, by their names; `mean` counts every task the same.

    >>> Scores("Accuracy", {"a": 1.0, "b": 0.5}).mean
    0.75
    """

    measure: str
    values: Mapping[str, float | None]

    @property
    def mean(self) -> float | None:
        """Mean over the tasks for which the measure is defined."""
        there = [value for value in self.values.values() if value is not None]
        return sum(there) / len(there) if there else None

    def __repr__(self) -> str:
        each = ", ".join(f"{name}: {'-' if value is None else f'{value:.3f}'}" for name, value in self.values.items())
        return f"{self.measure} {'-' if self.mean is None else f'{self.mean:.3f}'} ({each})"
