"""Sums and means of stored answers in the cells of a matrix.

Entry [i][j] is measured on task j after learning task i; None where nothing was. All arrays have one entry for each
stored answer.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64] | Sequence[int]
Floats = NDArray[np.float64] | Sequence[float]
Matrix = list[list[float | None]]


def ratio_matrix(after_task: Integers, task: Integers, above: Floats, below: Floats, tasks: int) -> Matrix:
    """Sum of `above` over sum of `below` in every cell; None where the latter is 0.

    >>> ratio_matrix([0, 1, 1], [0, 0, 0], [1.0, 2.0, 4.0], [1.0, 1.0, 1.0], tasks=2)
    [[1.0, None], [3.0, None]]
    """
    cells = np.asarray(after_task, dtype=np.int64) * tasks + np.asarray(task, dtype=np.int64)
    sums = [
        np.bincount(cells, weights=np.asarray(part, dtype=np.float64), minlength=tasks**2) for part in (above, below)
    ]
    top, bottom = (part.reshape(tasks, tasks) for part in sums)
    return [[float(top[i, j] / bottom[i, j]) if bottom[i, j] else None for j in range(tasks)] for i in range(tasks)]


def mean_matrix(after_task: Integers, task: Integers, values: Floats, tasks: int) -> Matrix:
    """The mean of `values` in every cell."""
    return ratio_matrix(after_task, task, values, np.ones(len(values)), tasks)
