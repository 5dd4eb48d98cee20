"""Metrics over evaluation points inside tasks: what the accuracy matrix, one row a task, does not see.

points[n][j]   accuracy on task j at evaluation point n, in the order of training
training[n]    the task, counted from 0, that was being learned at point n
"""

from collections.abc import Sequence

from contune.errors import DataError
from contune.metric.matrix import Matrix, mean


def anytime_accuracy(points: Matrix, training: Sequence[int]) -> float | None:
    """`AAA = (1/N) sum_n (1/k_n) sum_{j<=k_n} a_n[j]`, k_n the tasks begun at point n (online continual learning).

    With one point at the end of every task this is the average incremental accuracy.

    >>> anytime_accuracy([[0.4, None], [0.8, None], [0.6, 0.2]], training=[0, 0, 1])
    0.5333333333333333
    """
    _check_points(points, training)
    return mean(mean(row[: task + 1]) for row, task in zip(points, training, strict=True))


def minimum_accuracy(points: Matrix, training: Sequence[int]) -> float | None:
    """`min-ACC_k = (1/(k-1)) sum_{j<k} min_{n after task j} a_n[j]`, k the last task begun (arXiv 2205.13452)."""
    _check_points(points, training)
    return mean(_lowest_after(points, training, task) for task in range(training[-1]))


def _lowest_after(points: Matrix, training: Sequence[int], task: int) -> float | None:
    later = [row[task] for row, current in zip(points, training, strict=True) if current > task]
    known = [value for value in later if value is not None]
    return min(known) if known and len(known) == len(later) else None


def worst_case_accuracy(points: Matrix, training: Sequence[int]) -> float | None:
    """`WC-ACC_k = (1/k) a_n[k] + (1 - 1/k) min-ACC_k` at the last point n (arXiv 2205.13452)."""
    _check_points(points, training)
    newest = points[-1][training[-1]]
    learned = training[-1] + 1
    if learned == 1:
        return newest
    lowest = minimum_accuracy(points, training)
    if newest is None or lowest is None:
        return None
    return newest / learned + (1 - 1 / learned) * lowest


def _check_points(points: Matrix, training: Sequence[int]) -> None:
    if not points or len(points) != len(training):
        raise DataError(f"{len(points)} evaluation points and {len(training)} task numbers; give one number a point")
    if list(training) != sorted(training) or training[0] < 0:
        raise DataError("the task numbers of the evaluation points must not fall; give the points in training order")
    for number, (row, task) in enumerate(zip(points, training, strict=True)):
        if task >= len(row):
            raise DataError(
                f"evaluation point {number} was taken in task {task} but holds {len(row)} accuracies; "
                "give one for every task, None for what was not measured"
            )
