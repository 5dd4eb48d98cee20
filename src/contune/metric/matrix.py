"""Metrics that follow from the accuracy matrix alone.

    R[i][j]   accuracy on task j after learning task i, both counted from 0; None where it was not measured
    T         number of tasks learned, the number of rows
    R[T-1]    the last row: what the model knows at the end

The formulas in the docstrings count tasks from 1, as the papers do. Accuracies and every result are fractions, not
percentages. A result is None, never 0, where the formula does not apply (one task has no forgetting) or where a cell
it needs is None. A matrix may have fewer rows than columns: then only the first `len(matrix)` tasks were learned.
"""

import math
from collections.abc import Iterable, Sequence

from contune.errors import DataError

Matrix = Sequence[Sequence[float | None]]
Row = Sequence[float | None]


def check_matrix(matrix: Matrix) -> None:
    """Raise `DataError` unless the rows are equally long, no more than the columns, and finite or None."""
    if not matrix:
        raise DataError("the accuracy matrix has no rows; give one row for every task learned")
    columns = len(matrix[0])
    if len(matrix) > columns:
        raise DataError(
            f"the accuracy matrix has {len(matrix)} rows and {columns} columns; give one column for every task, "
            "and one row for every task learned"
        )
    for number, row in enumerate(matrix):
        if len(row) != columns:
            raise DataError(
                f"row {number} of the accuracy matrix has {len(row)} cells and row 0 has {columns}; "
                "write null for what was not measured"
            )
        for column, value in enumerate(row):
            if value is not None and not math.isfinite(value):
                raise DataError(
                    f"cell [{number}][{column}] of the accuracy matrix is {value}; write null for what was not measured"
                )


def mean(values: Iterable[float | None]) -> float | None:
    """The mean, or None where there is no value or one of them is None.

    >>> mean([0.5, 1.0]), mean([]), mean([0.5, None])
    (0.75, None, None)
    """
    known: list[float] = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    return math.fsum(known) / len(known) if known else None


def weighted_mean(values: Iterable[float | None], weights: Iterable[float]) -> float | None:
    """The mean with weights; None where a value of positive weight is None, or the weights add up to 0."""
    total, weight_sum = 0.0, 0.0
    for value, weight in zip(values, weights, strict=True):
        if weight == 0:
            continue
        if value is None:
            return None
        total += value * weight
        weight_sum += weight
    return total / weight_sum if weight_sum else None


def difference(first: float | None, second: float | None) -> float | None:
    """`first - second`, or None where either is."""
    return None if first is None or second is None else first - second


def _learned(matrix: Matrix, learned: int | None) -> int:
    if learned is None:
        return len(matrix)
    if not 1 <= learned <= len(matrix):
        raise DataError(f"learned is {learned}; give 1 to {len(matrix)}, the number of rows of the matrix")
    return learned


def average_accuracy(matrix: Matrix, learned: int | None = None) -> float | None:
    """`A_k = (1/k) sum_{j<=k} R[k,j]` with k = `learned`, all tasks unless told (GEM, arXiv 1706.08840).

    >>> average_accuracy([[0.9, None], [0.5, 0.7]])
    0.6
    """
    k = _learned(matrix, learned)
    return mean(matrix[k - 1][:k])


def last_accuracy(matrix: Matrix, test_examples: Sequence[int]) -> float | None:
    """`sum_{j<=T} n_j R[T,j] / sum_{j<=T} n_j`: the share of all test examples answered rightly at the end.

    `test_examples` (tasks,) are the n_j. Equal to the average accuracy where the tasks' test sets are equally large.
    """
    if len(test_examples) != len(matrix[0]):
        raise DataError(
            f"test_examples has {len(test_examples)} numbers and the accuracy matrix {len(matrix[0])} columns; "
            "give one number for every task"
        )
    learned = len(matrix)
    return weighted_mean(matrix[-1][:learned], test_examples[:learned])


def average_incremental_accuracy(matrix: Matrix) -> float | None:
    """`(1/T) sum_k A_k`, the first task included (iCaRL, arXiv 1611.07725)."""
    return mean(average_accuracy(matrix, k) for k in range(1, len(matrix) + 1))


def learning_accuracy(matrix: Matrix) -> float | None:
    """`LA = (1/T) sum_j R[j,j]`: each task measured right after it was learned (MER, arXiv 1810.11910)."""
    return mean(matrix[j][j] for j in range(len(matrix)))


def _final_minus_learned(matrix: Matrix) -> list[float | None]:
    last = len(matrix) - 1
    return [difference(matrix[last][j], matrix[j][j]) for j in range(last)]


def backward_transfer(matrix: Matrix) -> float | None:
    """`BWT = (1/(T-1)) sum_{j<T} (R[T,j] - R[j,j])` (GEM, arXiv 1706.08840); negative means forgetting."""
    return mean(_final_minus_learned(matrix))


def backward_transfer_trace(matrix: Matrix) -> float | None:
    """`(1/T) sum_{j<T} (R[T,j] - R[j,j])`: TRACE divides by T, not by T - 1 (arXiv 2310.06762)."""
    transfer, tasks = backward_transfer(matrix), len(matrix)
    return None if transfer is None else transfer * (tasks - 1) / tasks


def backward_transfer_matrix(matrix: Matrix) -> float | None:
    """`sum_{i>=2} sum_{j<i} (R[i,j] - R[j,j]) / (T(T-1)/2)`: over all rows, not only the last (arXiv 1810.13166)."""
    return mean(difference(matrix[i][j], matrix[j][j]) for i in range(1, len(matrix)) for j in range(i))


def positive_backward_transfer(matrix: Matrix) -> float | None:
    """`BWT+ = max(BWT, 0)` of the matrix form (arXiv 1810.13166)."""
    transfer = backward_transfer_matrix(matrix)
    return None if transfer is None else max(transfer, 0.0)


def remembering(matrix: Matrix) -> float | None:
    """`REM = 1 - |min(BWT, 0)|` of the matrix form (arXiv 1810.13166)."""
    transfer = backward_transfer_matrix(matrix)
    return None if transfer is None else 1.0 - abs(min(transfer, 0.0))


def forward_transfer(matrix: Matrix, baseline: Row) -> float | None:
    """`FWT = (1/(T-1)) sum_{j>=2} (R[j-1,j] - b[j])` (GEM, arXiv 1706.08840).

    `baseline` (tasks,) is b: a randomly initialised model's accuracy for GEM's own form, or the pretrained model's
    before the first task, which is the sensible one where the base already answers without training.
    """
    return mean(difference(matrix[j - 1][j], baseline[j]) for j in range(1, len(matrix)))


def forward_transfer_without_baseline(matrix: Matrix) -> float | None:
    """`(1/(T-1)) sum_{j>=2} R[j-1,j]`: accuracy on the next task before it is learned."""
    return mean(matrix[j - 1][j] for j in range(1, len(matrix)))


def forward_transfer_matrix(matrix: Matrix) -> float | None:
    """`sum_{i<j} R[i,j] / (T(T-1)/2)`: accuracy on all later tasks (arXiv 1810.13166)."""
    return mean(matrix[i][j] for i in range(len(matrix)) for j in range(i + 1, len(matrix)))


def single_task_transfer(matrix: Matrix, single: Row) -> float | None:
    """`(1/T) sum_j (R[j,j] - S[j])` with `single` (tasks,) = S, a model trained on task j alone.

    Called forward transfer in works on language models (SAPT); it measures plasticity, not zero-shot transfer.
    """
    return mean(difference(matrix[j][j], single[j]) for j in range(len(matrix)))


def forgetting_by_task(matrix: Matrix, learned: int | None = None) -> list[float | None]:
    """`f_j^k = max_{j<=l<k} R[l,j] - R[k,j]` for every j < k = `learned` (arXiv 1801.10112).

    One value for each task but the last; negative where a task got better than it ever was.
    """
    k = _learned(matrix, learned)
    return [difference(_best([matrix[row][j] for row in range(j, k - 1)]), matrix[k - 1][j]) for j in range(k - 1)]


def _best(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def forgetting(matrix: Matrix, learned: int | None = None) -> float | None:
    """`F_k = (1/(k-1)) sum_{j<k} f_j^k` (arXiv 1801.10112)."""
    return mean(forgetting_by_task(matrix, learned))


def learned_minus_final(matrix: Matrix) -> float | None:
    """`(1/(T-1)) sum_{j<T} (R[j,j] - R[T,j]) = -BWT`, which many works also call forgetting."""
    transfer = backward_transfer(matrix)
    return None if transfer is None else 0.0 - transfer


def relative_forgetting(matrix: Matrix) -> float | None:
    """`(1/(T-1)) sum_{j<T} (R[j,j] - R[T,j]) / R[j,j]`; None where a task was learned to 0."""
    last = len(matrix) - 1
    return mean(_relative(difference(matrix[j][j], matrix[last][j]), matrix[j][j]) for j in range(last))


def _relative(value: float | None, whole: float | None) -> float | None:
    return None if value is None or whole is None or whole == 0 else value / whole


def intransigence(matrix: Matrix, joint_at: Row, learned: int | None = None) -> float | None:
    """`I_k = J_k[k] - R[k,k]` with k = `learned` (arXiv 1801.10112); negative is better than joint training.

    `joint_at[k-1]` is the accuracy on task k of a model trained jointly on tasks 1 to k.
    """
    k = _learned(matrix, learned)
    return difference(joint_at[k - 1], matrix[k - 1][k - 1])


def stability(matrix: Matrix, learned: int | None = None) -> float | None:
    """`(1/(k-1)) sum_{j<k} R[k,j]`: accuracy on the old tasks after learning task k."""
    k = _learned(matrix, learned)
    return mean(matrix[k - 1][: k - 1])


def plasticity(matrix: Matrix, learned: int | None = None) -> float | None:
    """`R[k,k]`: accuracy on the newest task after learning it."""
    k = _learned(matrix, learned)
    return matrix[k - 1][k - 1]


def stability_plasticity_trade_off(matrix: Matrix, learned: int | None = None) -> float | None:
    """`2 s p / (s + p)`, the harmonic mean of stability and plasticity; None where both are 0."""
    stable, plastic = stability(matrix, learned), plasticity(matrix, learned)
    if stable is None or plastic is None or stable + plastic == 0:
        return None
    return 2 * stable * plastic / (stable + plastic)


def upper_bound_gap(matrix: Matrix, joint: Row) -> float | None:
    """`(1/T) sum_j (J[j] - R[T,j])` with `joint` (tasks,) = J, a model trained on all tasks at once."""
    return mean(difference(joint[j], matrix[-1][j]) for j in range(len(matrix)))


def relative_upper_bound_gap(matrix: Matrix, joint: Row) -> float | None:
    """`(1/T) sum_j (J[j] - R[T,j]) / J[j]`; None where joint training reaches 0 on a task."""
    return mean(_relative(difference(joint[j], matrix[-1][j]), joint[j]) for j in range(len(matrix)))


def zero_shot_transfer(matrix: Matrix) -> float | None:
    """`(1/(T-1)) sum_{j>=2} (1/(j-1)) sum_{i<j} R[i,j]`: "Transfer" of ZSCL (arXiv 2303.06628)."""
    return mean(mean(matrix[i][j] for i in range(j)) for j in range(1, len(matrix)))


def matrix_average(matrix: Matrix) -> float | None:
    """`(1/T^2) sum_i sum_j R[i,j]`, unseen tasks included: "Avg" of ZSCL (arXiv 2303.06628)."""
    return mean(value for row in matrix for value in row[: len(matrix)])
