"""Metrics of the accuracy matrix: the hand-worked example, the identities, and None where nothing is defined."""

import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contune.errors import DataError
from contune.metric import matrix as of
from contune.metric.definitions import DEFINITIONS
from contune.metric.matrix import Matrix
from contune.metric.summary import summary

R = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.9, 0.7]]
PRETRAINED = [0.1, 0.1, 0.2]
SINGLE = [0.9, 0.85, 0.75]
JOINT = [0.95, 0.9, 0.8]

accuracies = st.integers(0, 10_000).map(lambda hits: hits / 10_000)  # an accuracy is a count over a count


@st.composite
def full_matrices(draw: st.DrawFn, minimum: int = 1) -> list[list[float]]:
    tasks = draw(st.integers(minimum, 7))
    return [draw(st.lists(accuracies, min_size=tasks, max_size=tasks)) for _ in range(tasks)]


def lower(matrix: Matrix) -> list[list[float | None]]:
    """The matrix as a run writes it: tasks not yet seen are null."""
    return [[value if j <= i else None for j, value in enumerate(row)] for i, row in enumerate(matrix)]


WORKED = {
    "average_accuracy": 0.7333,
    "average_incremental_accuracy": 0.7944,
    "backward_transfer": -0.1,
    "backward_transfer_trace": -0.0667,
    "backward_transfer_matrix": -0.1333,
    "positive_backward_transfer": 0.0,
    "remembering": 0.8667,
    "forgetting": 0.1,
    "learned_minus_final": 0.1,
    "relative_forgetting": 0.1042,  # (0.3 / 0.9 - 0.1 / 0.8) / 2
    "forward_transfer": 0.1,
    "forward_transfer_without_baseline": 0.25,
    "forward_transfer_matrix": 0.2,
    "forward_transfer_pretrained": 0.1,
    "learning_accuracy": 0.8,
    "single_task_transfer": -0.0333,
    "zero_shot_transfer": 0.2,
    "matrix_average": 0.5778,
    "stability": 0.75,
    "plasticity": 0.7,
    "stability_plasticity_trade_off": 0.7241,
    "upper_bound_gap": 0.15,
    "relative_upper_bound_gap": 0.1645,  # (0.35 / 0.95 + 0 + 0.1 / 0.8) / 3
    "intransigence": 0.1,
    "last_accuracy": 0.68,  # (0.6 * 30 + 0.9 * 10 + 0.7 * 10) / 50
}


def worked_summary() -> dict[str, float | None]:
    return summary(
        R, [30, 10, 10], baseline=PRETRAINED, pretrained=PRETRAINED, single=SINGLE, joint=JOINT, joint_at=JOINT
    )


@pytest.mark.parametrize("name", sorted(WORKED))
def test_worked_example(name: str) -> None:
    assert worked_summary()[name] == pytest.approx(WORKED[name], abs=5e-5)


def test_worked_example_covers_the_summary() -> None:
    assert set(worked_summary()) == set(WORKED)


def test_forgetting_takes_the_maximum_from_the_tasks_own_row_on() -> None:
    assert of.forgetting_by_task(R) == pytest.approx([0.3, -0.1])
    unlearned = [[0.5, 0.99], [0.5, 0.4], [0.5, 0.4]]
    # 0.99 was measured before task 1 was learned: it is forward transfer and must not count as forgotten.
    assert of.forgetting_by_task([[*row, 0.0] for row in unlearned])[1] == 0.0


def test_partial_prefix_equals_the_cut_matrix() -> None:
    assert of.average_accuracy(R, 2) == pytest.approx(0.75)
    assert of.forgetting(R, 2) == of.forgetting([row[:2] for row in R[:2]]) == pytest.approx(0.2)
    assert of.intransigence(R, JOINT, 2) == pytest.approx(0.1)


@given(full_matrices(minimum=2))
def test_average_accuracy_is_learning_accuracy_plus_backward_transfer(matrix: list[list[float]]) -> None:
    values = summary(lower(matrix), [1] * len(matrix))
    tasks = len(matrix)
    learning, transfer = values["learning_accuracy"], values["backward_transfer"]
    assert learning is not None
    assert transfer is not None
    assert values["average_accuracy"] == pytest.approx(learning + transfer * (tasks - 1) / tasks, abs=1e-12)
    assert values["last_accuracy"] == pytest.approx(values["average_accuracy"])
    assert values["learned_minus_final"] == -transfer


@given(full_matrices(minimum=2))
def test_forgetting_is_at_least_minus_backward_transfer(matrix: list[list[float]]) -> None:
    forgetting, transfer = of.forgetting(lower(matrix)), of.backward_transfer(lower(matrix))
    assert forgetting is not None
    assert transfer is not None
    assert forgetting >= -transfer - 1e-12
    peaked = [
        [value if j == i else min(value, matrix[j][j]) for j, value in enumerate(row)] for i, row in enumerate(matrix)
    ]
    assert of.forgetting(peaked) == pytest.approx(-(of.backward_transfer(peaked) or 0.0), abs=1e-12)


@given(st.lists(accuracies, min_size=2, max_size=7))
def test_a_frozen_model_forgets_and_transfers_nothing(row: list[float]) -> None:
    values = summary([row] * len(row), [1] * len(row), pretrained=row)
    for name in ("forgetting", "backward_transfer", "learned_minus_final", "forward_transfer_pretrained"):
        assert values[name] == pytest.approx(0.0, abs=1e-12)
    assert values["remembering"] == pytest.approx(1.0)


@given(full_matrices())
def test_every_value_is_finite_and_named(matrix: list[list[float]]) -> None:
    for name, value in summary(matrix, list(range(1, len(matrix) + 1))).items():
        assert value is None or math.isfinite(value)
        assert name in DEFINITIONS


@given(full_matrices(minimum=2), st.data())
def test_a_missing_cell_makes_what_needs_it_none(matrix: list[list[float]], data: st.DataObject) -> None:
    holed: list[list[float | None]] = [list(row) for row in matrix]
    column = data.draw(st.integers(0, len(matrix) - 2))
    holed[-1][column] = None
    values = summary(holed, [1] * len(matrix))
    for name in ("average_accuracy", "last_accuracy", "backward_transfer", "forgetting", "stability"):
        assert values[name] is None
    assert values["learning_accuracy"] is not None


def test_one_task_has_no_transfer_and_no_forgetting() -> None:
    values = summary([[0.8]], [50], baseline=[0.1], pretrained=[0.1], joint=[0.8])
    assert values["last_accuracy"] == values["learning_accuracy"] == values["plasticity"] == 0.8
    undefined = ("backward_transfer", "backward_transfer_trace", "forgetting", "forward_transfer", "stability",
                 "forward_transfer_pretrained", "relative_forgetting", "remembering")  # fmt: skip
    assert [values[name] for name in undefined] == [None] * len(undefined)
    assert values["upper_bound_gap"] == 0.0


def test_lower_triangle_has_no_forward_transfer() -> None:
    values = summary(lower(R), [1, 1, 1], baseline=PRETRAINED, pretrained=PRETRAINED)
    for name in ("forward_transfer", "forward_transfer_pretrained", "forward_transfer_matrix", "zero_shot_transfer"):
        assert values[name] is None
    assert values["forgetting"] == pytest.approx(0.1)


def test_a_joint_run_has_only_a_last_accuracy() -> None:
    values = summary([[None, None], [0.9, 0.7]], [10, 30])
    assert values["last_accuracy"] == pytest.approx(0.75)
    assert values["average_accuracy"] == pytest.approx(0.8)
    for name in ("learning_accuracy", "forgetting", "backward_transfer", "average_incremental_accuracy"):
        assert values[name] is None


def test_undefined_ratios_are_none() -> None:
    assert of.relative_forgetting([[0.0, None], [0.0, 0.5]]) is None
    assert of.relative_upper_bound_gap([[0.5]], [0.0]) is None
    assert of.stability_plasticity_trade_off([[0.5, None], [0.0, 0.0]]) is None
    assert of.last_accuracy([[0.5]], [0]) is None


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        ([], "has no rows"),
        ([[0.1], [0.2]], "2 rows and 1 columns"),
        ([[0.1, None], [0.2]], "row 1 .* has 1 cells"),
        ([[float("nan")]], r"\[0\]\[0\] .* is nan"),
    ],
)
def test_a_damaged_matrix_is_refused_with_a_sentence(matrix: Matrix, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        summary(matrix, [1])


def test_wrong_reference_rows_are_refused() -> None:
    with pytest.raises(DataError, match="joint has 1 numbers and the matrix 3 columns"):
        summary(R, [1, 1, 1], joint=[0.5])
    with pytest.raises(DataError, match="test_examples has 2 numbers"):
        summary(R, [1, 1])
    with pytest.raises(DataError, match="learned is 4; give 1 to 3"):
        of.average_accuracy(R, 4)


def test_every_definition_is_complete() -> None:
    for name, definition in DEFINITIONS.items():
        assert all(str(getattr(definition, field.name)) for field in fields(definition)), name
    assert len({definition.name for definition in DEFINITIONS.values()}) == len(DEFINITIONS)
    assert not DEFINITIONS["forgetting"].higher_is_better
