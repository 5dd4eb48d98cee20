"""Matrix, forgetting by class and confusion between tasks from stored predictions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contune.errors import DataError
from contune.metric.predictions import confusion_between_tasks, forgetting_by_class, matrix_from_predictions

# (after_task, task, label, prediction): two tasks of two classes, "a" is forgotten, "b" is kept.
ROWS = [
    (0, 0, "a", "a"),
    (0, 0, "a", "a"),
    (0, 0, "b", "b"),
    (0, 0, "b", "a"),
    (1, 0, "a", "c"),
    (1, 0, "a", "b"),
    (1, 0, "b", "b"),
    (1, 0, "b", "b"),
    (1, 1, "c", "c"),
    (1, 1, "c", "nonsense"),
    (1, 1, "d", "b"),
    (1, 1, "d", "d"),
]
AFTER, TASK, LABEL, PREDICTION = ([row[n] for row in ROWS] for n in range(4))
CORRECT = [row[2] == row[3] for row in ROWS]


def test_matrix_by_hand() -> None:
    assert matrix_from_predictions(AFTER, TASK, CORRECT, 2) == [[0.75, None], [0.5, 0.5]]


def test_a_joint_run_fills_the_last_row_only() -> None:
    matrix = matrix_from_predictions([1, 1], [0, 1], [True, False], 2)
    assert matrix == [[None, None], [1.0, 0.0]]


def test_forgetting_by_class_by_hand() -> None:
    found = {entry.name: entry for entry in forgetting_by_class(AFTER, TASK, LABEL, CORRECT, 2)}
    assert (found["a"].learned, found["a"].final, found["a"].forgetting) == (1.0, 0.0, 1.0)
    assert (found["b"].learned, found["b"].final, found["b"].forgetting) == (0.5, 1.0, -0.5)
    assert (found["d"].learned, found["d"].final, found["d"].forgetting) == (0.5, 0.5, None)
    assert [entry.test_examples for entry in found.values()] == [2, 2, 2, 2]


def test_forgetting_by_class_takes_the_best_row() -> None:
    found = forgetting_by_class([0, 1, 2], [0, 0, 0], ["a"] * 3, [False, True, False], 3)
    assert (found[0].learned, found[0].forgetting) == (0.0, 1.0)


def test_forgetting_by_class_in_a_joint_run_is_none() -> None:
    found = forgetting_by_class([1, 1], [0, 1], ["a", "b"], [True, False], 2)
    assert [(entry.learned, entry.final, entry.forgetting) for entry in found] == [(None, 1.0, None), (0.0, 0.0, None)]


def test_a_class_in_two_tasks_has_two_entries() -> None:
    found = forgetting_by_class([0, 1, 1], [0, 0, 1], ["a", "a", "a"], [True, False, True], 2)
    assert [(entry.task, entry.forgetting) for entry in found] == [(0, 1.0), (1, None)]


def test_confusion_by_hand() -> None:
    confusion = confusion_between_tasks(AFTER, TASK, LABEL, PREDICTION, CORRECT, 2)
    assert confusion is not None
    assert confusion.shares == [[0.75, 0.25], [0.25, 0.5]]
    assert confusion.elsewhere == [0.0, 0.25]
    assert confusion.errors == 4
    assert confusion.errors_in_other_tasks == 0.5


def test_confusion_without_errors_and_with_shared_classes() -> None:
    right = confusion_between_tasks([0], [0], ["a"], ["a"], [True], 1)
    assert right is not None
    assert right.errors_in_other_tasks is None
    assert confusion_between_tasks([1, 1], [0, 1], ["a", "a"], ["a", "a"], [True, True], 2) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=60))
def test_matrix_counts_every_prediction_once(rows: list[tuple[int, int, bool]]) -> None:
    matrix = matrix_from_predictions(*([row[n] for row in rows] for n in range(3)), tasks=4)  # type: ignore[arg-type]
    for i in range(4):
        for j in range(4):
            cell = [right for after, task, right in rows if (after, task) == (i, j)]
            assert matrix[i][j] == (pytest.approx(sum(cell) / len(cell)) if cell else None)


def test_a_prediction_outside_the_stream_is_refused() -> None:
    with pytest.raises(DataError, match="after_task is 2 in row 1 of the predictions; the stream has 2 tasks"):
        matrix_from_predictions([0, 2], [0, 0], [True, True], 2)
    with pytest.raises(DataError, match="task is -1 in row 0"):
        matrix_from_predictions([0], [-1], [True], 2)
    with pytest.raises(DataError, match="one entry each"):
        matrix_from_predictions([0, 1], [0], [True], 2)
