"""Checking in settings whose answers are classes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from contune.checks.setting import Setting
from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.engine.learner import Learner
from contune.stream.task import Examples, Kind, Task

if TYPE_CHECKING:
    from contune.checks.run import CheckRun


class ClassSetting(Setting):
    """Three tasks of two classes each; the tasks and the model are the concrete setting's."""

    kinds: ClassVar[tuple[Kind, ...]] = ("class-incremental", "task-incremental")

    def other_orders(self) -> tuple[Task, ...]:
        first, second, third = self.tasks()
        return reversed_classes(third), merged(second, first)

    def odd_tasks(self) -> tuple[Task, ...]:
        """One class alone, then one example a class, which come back."""
        first, second, _ = self.tasks()
        alone = np.flatnonzero(first.train.labels == 0)
        single = Task("one class", first.class_names[:1], first.train.take(alone[:5]), first.test.take(range(0)))
        rows = [int(np.flatnonzero(second.train.labels == label)[0]) for label in (0, 1)]
        few = Task("one example a class", second.class_names, second.train.take(rows), second.test)
        return single, few, few

    def not_learned(self, trial: "CheckRun") -> str | None:
        return above_chance(trial.scores, len(trial.learner.class_names), margin=0.1)

    def not_learned_in_order(self, learner: Learner, scores: Sequence[float]) -> str | None:
        return above_chance(scores, len(learner.class_names), margin=0.0)

    def outputs(self, context: Context, dataset: Dataset) -> Mapping[str, Tensor]:
        return {"features": context.passes.features(dataset), "scores": context.passes.logits(dataset)}


def above_chance(scores: Sequence[float], classes: int, margin: float) -> str | None:
    """What is wrong with accuracies that are not above chance by more than a margin, or None.

    >>> above_chance([0.5, 0.7], 2, 0.2)
    'accuracy on the task just learned is 0.60, chance 0.50'
    """
    chance, reached = 1 / classes, float(np.mean(scores))
    if reached > chance + margin:
        return None
    return f"accuracy on the task just learned is {reached:.2f}, chance {chance:.2f}"


def reversed_classes(task: Task) -> Task:
    """The task with its classes listed the other way round."""
    last = len(task.class_names) - 1
    train, test = (Examples(e.inputs, last - e.labels, e.ids, e.modality) for e in (task.train, task.test))
    return Task(task.name, tuple(reversed(task.class_names)), train, test)


def merged(first: Task, second: Task) -> Task:
    """One task with the classes of two."""
    shift = len(first.class_names)
    both = []
    for one, two in ((first.train, second.train), (first.test, second.test)):
        labels = np.concatenate([one.labels, two.labels + shift])
        ids = np.concatenate([one.ids, two.ids])
        both.append(Examples([*one.inputs, *two.inputs], labels, ids, one.modality))
    return Task("merged", (*first.class_names, *second.class_names), *both)
