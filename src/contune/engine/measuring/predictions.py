"""The stored predictions of a run: the table of what was answered, and the matrices that derive from it."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from contune.contract.objective import PLACES, Judged, Measure, Objective
from contune.stream.task import Task

Matrix = list[list[float | None]]


def prediction_table(row: int, index: int, task: Task, judged: Judged, objective: Objective) -> pa.Table:
    """What was answered on one task's test examples, one row each."""
    count = len(judged.score)
    places = dict(
        zip((name for name, _ in PLACES), [[row] * count, [index] * count, task.test.ids.tolist()], strict=True)
    )
    return pa.table({**places, **judged.columns}, objective.table_schema())


def matrices(rows: pa.Table, classes: Sequence[Sequence[str]], measures: Sequence[Measure]) -> dict[str, Matrix]:
    """Every measure's matrix (tasks, tasks) from stored predictions, by name; None in a cell without any.

    `classes` are the names of each task.
    """
    tasks = len(classes)
    found: dict[str, Matrix] = {measure.name: [[None] * tasks for _ in range(tasks)] for measure in measures}
    after, task = (rows[name].to_numpy().astype(np.int64) for name in ("after_task", "task"))
    cells = after * tasks + task
    for cell in np.unique(cells).tolist():
        i, j = divmod(cell, tasks)
        own = rows.take(pa.array(np.flatnonzero(cells == cell))).to_pydict()
        for measure in measures:
            found[measure.name][i][j] = measure.cell(own, classes[j])
    return found


def filled(known: dict[str, Matrix], new: Mapping[str, Matrix]) -> dict[str, Matrix]:
    """Matrices with the cells of new ones in place of those that hold nothing yet.

    >>> filled({"a": [[0.5, None]]}, {"a": [[None, 0.25]]})
    {'a': [[0.5, 0.25]]}
    """
    return {
        name: [
            [a if b is None else b for a, b in zip(*rows, strict=True)] for rows in zip(matrix, new[name], strict=True)
        ]
        for name, matrix in known.items()
    }
