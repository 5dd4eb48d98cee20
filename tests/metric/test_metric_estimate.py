"""Mean, spread and interval against scipy and by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from contune.metric.estimate import estimate, student_quantile


@pytest.mark.parametrize("freedom", [*range(1, 15), 29, 30, 99, 100, 1001])
@pytest.mark.parametrize("coverage", [0.5, 0.95, 0.99])
def test_quantile_is_students(freedom: int, coverage: float) -> None:
    assert student_quantile(freedom, coverage) == pytest.approx(t.ppf((1 + coverage) / 2, freedom), rel=1e-9)


def test_by_hand() -> None:
    found = estimate([0.2, 0.4, 0.6, None])
    assert (found.n, found.mean, found.deviation) == (3, pytest.approx(0.4), pytest.approx(0.2))
    assert found.high == pytest.approx(0.4 + 4.302653 * 0.2 / 3**0.5, abs=1e-6)


def test_too_few_values_have_no_spread() -> None:
    assert estimate([0.5]).mean == 0.5
    assert estimate([0.5]).deviation is estimate([0.5]).low is None
    assert estimate([None]).mean is None
    assert estimate([]).n == 0


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_interval_holds_the_mean(values: list[float]) -> None:
    found = estimate(values)
    assert found.mean is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.mean <= found.high
