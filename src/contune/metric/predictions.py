"""From stored predictions to the accuracy matrix, to forgetting by class and to confusion between tasks.

All arrays have one entry for each stored prediction and the same length n: `after_task` is the row of the matrix,
`task` its column, `label` and `prediction` are names, `correct` says whether the prediction counts as right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from contune.errors import DataError
from contune.metric.cells import mean_matrix

Integers = NDArray[np.int64] | Sequence[int]
Booleans = NDArray[np.bool_] | Sequence[bool]
Names = Sequence[str]


def matrix_from_predictions(
    after_task: Integers, task: Integers, correct: Booleans, tasks: int
) -> list[list[float | None]]:
    """The accuracy matrix (tasks, tasks): share of `correct` in every cell, None where there is no prediction.

    >>> matrix_from_predictions([0, 0, 1, 1], [0, 0, 0, 1], [True, False, True, True], tasks=2)
    [[0.5, None], [1.0, 1.0]]
    """
    rows, columns, right = _cells(after_task, task, correct, tasks)
    return mean_matrix(rows, columns, right.astype(np.float64), tasks)


@final
@dataclass(frozen=True)
class ClassForgetting:
    """One class: accuracy right after it was learned, at its best before the last task, and at the end.

    `forgetting` is None for the classes of the last task, which had no time to be forgotten.
    """

    name: str
    task: int
    test_examples: int
    learned: float | None
    final: float | None
    forgetting: float | None


def forgetting_by_class(
    after_task: Integers, task: Integers, label: Names, correct: Booleans, tasks: int
) -> list[ClassForgetting]:
    """Forgetting `max_{j<=l<T} R_c[l] - R_c[T]` of every class c of task j, in order of arrival.

    R_c[i] is the accuracy after task i on the test examples of class c in task j. A class that occurs in several tasks
    (domain-incremental) has one entry for each.
    """
    rows, columns, right = _cells(after_task, task, correct, tasks)
    names = list(dict.fromkeys(label))
    codes = _codes(label, {name: code for code, name in enumerate(names)})
    pairs, groups = np.unique(columns * len(names) + codes, return_inverse=True)
    counts, hits = _count(groups, rows, right, len(pairs), tasks)
    with np.errstate(invalid="ignore"):
        accuracy = hits / counts
    found = []
    for number, pair in enumerate(pairs.tolist()):
        first = pair // len(names)
        found.append(
            ClassForgetting(
                name=names[pair % len(names)],
                task=first,
                test_examples=int(counts[number].max()),
                learned=_value(accuracy[number, first]),
                final=_value(accuracy[number, tasks - 1]),
                forgetting=_value(accuracy[number, first : tasks - 1].max(initial=-1.0) - accuracy[number, tasks - 1])
                if first < tasks - 1
                else None,
            )
        )
    return found


def _value(number: float) -> float | None:
    return None if np.isnan(number) else float(number)


@final
@dataclass(frozen=True)
class TaskConfusion:
    """Where the answers of each task fall, after the last task.

    `shares[i][j]` is the share of task i's test examples answered with a class of task j, right or wrong; each row
    adds up to 1 less `elsewhere[i]`, the share answered with a name that is no class of the stream.
    `errors_in_other_tasks` is the share of all errors that name a class of another task, None where there is no error.
    """

    shares: list[list[float | None]]
    elsewhere: list[float | None]
    errors: int
    errors_in_other_tasks: float | None


def confusion_between_tasks(
    after_task: Integers, task: Integers, label: Names, prediction: Names, correct: Booleans, tasks: int
) -> TaskConfusion | None:
    """Confusion between tasks after the last task; None where a class occurs in several tasks (domain-incremental)."""
    rows, columns, right = _cells(after_task, task, correct, tasks)
    owner: dict[str, int] = {}
    for name, column in zip(label, columns.tolist(), strict=True):
        if owner.setdefault(name, column) != column:
            return None
    last = rows == tasks - 1
    columns, right, answered = columns[last], right[last], _codes(prediction, owner, default=tasks)[last]
    counts, _ = _count(columns, answered, right, tasks, tasks + 1)
    totals = counts.sum(axis=1)
    shares: list[list[float | None]] = [
        [float(counts[i, j] / totals[i]) if totals[i] else None for j in range(tasks + 1)] for i in range(tasks)
    ]
    errors = int((~right).sum())
    other = int((~right & (answered != columns) & (answered < tasks)).sum())
    return TaskConfusion(
        shares=[row[:tasks] for row in shares],
        elsewhere=[row[tasks] for row in shares],
        errors=errors,
        errors_in_other_tasks=other / errors if errors else None,
    )


def _cells(
    after_task: Integers, task: Integers, correct: Booleans, tasks: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    rows, columns = np.asarray(after_task, dtype=np.int64), np.asarray(task, dtype=np.int64)
    right = np.asarray(correct, dtype=np.bool_)
    if not rows.shape == columns.shape == right.shape:
        raise DataError(
            f"after_task has shape {rows.shape}, task {columns.shape} and correct {right.shape}; give one entry each "
            "for every prediction"
        )
    for name, values in (("after_task", rows), ("task", columns)):
        wrong = np.flatnonzero((values < 0) | (values >= tasks))
        if len(wrong):
            raise DataError(
                f"{name} is {values[wrong[0]]} in row {wrong[0]} of the predictions; the stream has {tasks} tasks, so "
                f"it must be 0 to {tasks - 1}"
            )
    return rows, columns, right


def _codes(names: Names, code_of: Mapping[str, int], default: int = -1) -> NDArray[np.int64]:
    return np.fromiter((code_of.get(name, default) for name in names), dtype=np.int64, count=len(names))


def _count(
    first: NDArray[np.int64], second: NDArray[np.int64], right: NDArray[np.bool_], height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    flat = first * width + second
    counts = np.bincount(flat, minlength=height * width).reshape(height, width)
    hits = np.bincount(flat[right], minlength=height * width).reshape(height, width)
    return counts, hits
