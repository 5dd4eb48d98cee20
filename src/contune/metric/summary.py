"""Every metric that a run's accuracy matrix supports, by name."""

from collections.abc import Sequence

from contune.errors import DataError
from contune.metric import matrix as of
from contune.metric.matrix import Matrix, Row


def summary(
    matrix: Matrix,
    test_examples: Sequence[int],
    *,
    baseline: Row | None = None,
    pretrained: Row | None = None,
    single: Row | None = None,
    joint: Row | None = None,
    joint_at: Row | None = None,
) -> dict[str, float | None]:
    """All metrics of `contune.metric.definitions.DEFINITIONS` that follow from the accuracy matrix.

    `test_examples` (tasks,) are the sizes of the test sets. The reference rows (tasks,) are optional, and what needs
    them is None without: `baseline` a randomly initialised model or chance, `pretrained` the model before the first
    task, `single` one model for each task alone, `joint` one model for all tasks at once, `joint_at[k]` the accuracy on
    task k of a model for tasks 0 to k.

    >>> values = summary([[0.9, None], [0.5, 0.7]], [100, 300])
    >>> values["last_accuracy"], values["forgetting"], values["forward_transfer"]
    (0.65, 0.4, None)
    """
    of.check_matrix(matrix)
    rows = {"baseline": baseline, "pretrained": pretrained, "single": single, "joint": joint, "joint_at": joint_at}
    for name, row in rows.items():
        if row is not None and len(row) != len(matrix[0]):
            raise DataError(f"{name} has {len(row)} numbers and the matrix {len(matrix[0])} columns; give one a task")
    return {
        "last_accuracy": of.last_accuracy(matrix, test_examples),
        "average_accuracy": of.average_accuracy(matrix),
        "average_incremental_accuracy": of.average_incremental_accuracy(matrix),
        "learning_accuracy": of.learning_accuracy(matrix),
        "forgetting": of.forgetting(matrix),
        "learned_minus_final": of.learned_minus_final(matrix),
        "relative_forgetting": of.relative_forgetting(matrix),
        "backward_transfer": of.backward_transfer(matrix),
        "backward_transfer_trace": of.backward_transfer_trace(matrix),
        "backward_transfer_matrix": of.backward_transfer_matrix(matrix),
        "positive_backward_transfer": of.positive_backward_transfer(matrix),
        "remembering": of.remembering(matrix),
        "forward_transfer": None if baseline is None else of.forward_transfer(matrix, baseline),
        "forward_transfer_without_baseline": of.forward_transfer_without_baseline(matrix),
        "forward_transfer_matrix": of.forward_transfer_matrix(matrix),
        "forward_transfer_pretrained": None if pretrained is None else of.forward_transfer(matrix, pretrained),
        "single_task_transfer": None if single is None else of.single_task_transfer(matrix, single),
        "zero_shot_transfer": of.zero_shot_transfer(matrix),
        "matrix_average": of.matrix_average(matrix),
        "stability": of.stability(matrix),
        "plasticity": of.plasticity(matrix),
        "stability_plasticity_trade_off": of.stability_plasticity_trade_off(matrix),
        "intransigence": None if joint_at is None else of.intransigence(matrix, joint_at),
        "upper_bound_gap": None if joint is None else of.upper_bound_gap(matrix, joint),
        "relative_upper_bound_gap": None if joint is None else of.relative_upper_bound_gap(matrix, joint),
    }
