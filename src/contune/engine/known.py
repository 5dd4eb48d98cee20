"""What a learner has met: classes in the order of their columns, and which of them each task has."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from contune.contract.data import Rows
from contune.errors import DataError
from contune.stream.task import Examples, Task


@final
class Known:
    """Names of the columns, and the columns of every task."""

    def __init__(self) -> None:
        self.class_names: list[str] = []
        self.class_tasks: list[tuple[int, ...]] = []

    def meet(self, task: Task) -> None:
        """A task begins: its new classes get columns."""
        self._name(task.class_names)
        self.class_tasks.append(self.columns(task))

    def meet_chunk(self, class_names: Sequence[str]) -> int:
        """Examples arrive where there are no tasks: one long task has all columns. Gives the number of new ones."""
        before = len(self.class_names)
        self._name(class_names)
        self.class_tasks = [tuple(range(len(self.class_names)))]
        return len(self.class_names) - before

    def _name(self, names: Sequence[str]) -> None:
        self.class_names += [name for name in dict.fromkeys(names) if name not in self.class_names]

    def columns(self, task: Task) -> tuple[int, ...]:
        """The head column of each of the task's classes."""
        place = {name: column for column, name in enumerate(self.class_names)}
        missing = [name for name in task.class_names if name not in place]
        if missing:
            raise DataError(f"task {task.name!r} has class {missing[0]!r}, which was not learned; learn the task first")
        return tuple(place[name] for name in task.class_names)

    def labels(self, examples: Examples, task: Task) -> Rows:
        """Labels of a task's examples as head columns."""
        return np.asarray(self.columns(task), dtype=np.int64)[examples.labels]

    def in_columns(self, examples: Examples, task: Task) -> Examples:
        """Examples whose targets, if they have any, are told in head columns."""
        if examples.targets is None:
            return examples
        return replace(examples, targets=examples.targets.mapped(np.asarray(self.columns(task), dtype=np.int64)))

    def mask(self, seen: int) -> Tensor:
        """Which of the `seen` columns each task has (tasks, seen); all, where columns are no classes."""
        mask = torch.zeros(max(len(self.class_tasks), 1), seen, dtype=torch.bool)
        if seen != len(self.class_names):
            mask[:] = True
        elif self.class_tasks:
            columns = [np.asarray(each, dtype=np.int64) for each in self.class_tasks]
            rows = np.repeat(np.arange(len(columns)), [len(each) for each in columns])
            mask[torch.from_numpy(rows), torch.from_numpy(np.concatenate(columns))] = True
        return mask

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "class_names": list(self.class_names),
            "class_tasks": [list(columns) for columns in self.class_tasks],
        }

    def load_state(self, values: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.class_names = list(values["class_names"])
        self.class_tasks = [tuple(columns) for columns in values["class_tasks"]]
