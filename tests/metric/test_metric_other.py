"""Anytime and efficiency metrics on numbers small enough to work by hand."""

import pytest

from contune.errors import DataError
from contune.metric import anytime, efficiency
from contune.metric.matrix import average_incremental_accuracy

POINTS = [[0.5, None], [0.9, None], [0.3, 0.4], [0.6, 0.8]]
TRAINING = [0, 0, 1, 1]


def test_anytime_accuracy_is_the_mean_over_points() -> None:
    assert anytime.anytime_accuracy(POINTS, TRAINING) == pytest.approx((0.5 + 0.9 + 0.35 + 0.7) / 4)
    rows = [[0.9, None], [0.6, 0.8]]
    assert anytime.anytime_accuracy(rows, [0, 1]) == pytest.approx(average_incremental_accuracy(rows))


def test_the_stability_gap_shows_in_the_worst_case_only() -> None:
    assert anytime.minimum_accuracy(POINTS, TRAINING) == 0.3
    assert anytime.worst_case_accuracy(POINTS, TRAINING) == pytest.approx(0.8 / 2 + 0.3 / 2)
    without_dip = [POINTS[0], POINTS[1], POINTS[3]]
    assert anytime.minimum_accuracy(without_dip, [0, 0, 1]) == 0.6


def test_one_task_has_no_minimum() -> None:
    assert anytime.minimum_accuracy([[0.5]], [0]) is None
    assert anytime.worst_case_accuracy([[0.5]], [0]) == 0.5


def test_missing_evaluation_is_none() -> None:
    holed = [[0.9, None], [None, 0.8]]
    assert anytime.minimum_accuracy(holed, [0, 1]) is None
    assert anytime.worst_case_accuracy(holed, [0, 1]) is None


@pytest.mark.parametrize(
    ("points", "training", "sentence"),
    [([], [], "0 evaluation points"), ([[0.1], [0.1]], [1, 0], "must not fall"), ([[0.1]], [1], "taken in task 1")],
)
def test_wrong_points_are_refused(points: list[list[float | None]], training: list[int], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        anytime.anytime_accuracy(points, training)


def test_efficiency_by_hand() -> None:
    assert efficiency.model_size_efficiency([100, 200, 400]) == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert efficiency.model_size_efficiency([400, 100]) == 1.0
    assert efficiency.sample_storage_efficiency([10, 30], 100) == pytest.approx(0.8)
    assert efficiency.sample_storage_efficiency([0, 0], 100) == 1.0
    assert efficiency.sample_storage_efficiency([300], 100) == 0.0
    assert efficiency.computational_efficiency([1, 1], [2, 4]) == pytest.approx(0.375)
    assert efficiency.computational_efficiency([1, 1], [2, 4], scale=10) == 1.0


def test_scores_weigh_criteria() -> None:
    weights = {"a": 0.25, "b": 0.75}
    assert efficiency.continual_learning_score({"a": 1.0, "b": 0.2}, weights) == pytest.approx(0.4)
    assert efficiency.continual_learning_stability({"a": 0.1, "b": 0.2}, weights) == pytest.approx(1 - 0.175)
    assert efficiency.continual_learning_score({"a": 1.0, "b": None}, weights) is None


@pytest.mark.parametrize(
    ("criteria", "weights", "sentence"),
    [
        ({"a": 0.5}, {"b": 1.0}, "weights name"),
        ({"a": 0.5}, {"a": 0.5}, "add up to 0.5"),
        ({"a": 1.5}, {"a": 1.0}, "criterion 'a' is 1.5"),
    ],
)
def test_wrong_scores_are_refused(criteria: dict[str, float | None], weights: dict[str, float], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        efficiency.continual_learning_score(criteria, weights)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="model size is 0"):
        efficiency.model_size_efficiency([1, 0])
    with pytest.raises(DataError, match="data_bytes is 0"):
        efficiency.sample_storage_efficiency([1], 0)
    with pytest.raises(DataError, match="1 counts of one pass and 2"):
        efficiency.computational_efficiency([1], [1, 2])
