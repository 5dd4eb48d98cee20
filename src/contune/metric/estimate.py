"""Mean, spread and interval of a number measured in several runs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Estimate:
    """What `values` say about their mean.

    `deviation` is the sample standard deviation (divisor n - 1), `low` and `high` bound the 95 % t interval of the
    mean. All three are None with fewer than two values, and the mean too without any.
    """

    values: tuple[float, ...]
    mean: float | None
    deviation: float | None
    low: float | None
    high: float | None

    @property
    def n(self) -> int:
        """How many values were measured."""
        return len(self.values)


def estimate(values: Iterable[float | None]) -> Estimate:
    """Mean, sample standard deviation and 95 % t interval `mean ± t_{0.975, n-1} s / sqrt(n)`; None is left out.

    >>> found = estimate([0.5, 0.7])
    >>> found.n, round(found.mean, 3), round(found.deviation, 3), round(found.low, 2), round(found.high, 2)
    (2, 0.6, 0.141, -0.67, 1.87)
    """
    known = tuple(value for value in values if value is not None)
    if not known:
        return Estimate(known, None, None, None, None)
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Estimate(known, mean, None, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))
    half = student_quantile(len(known) - 1) * deviation / math.sqrt(len(known))
    return Estimate(known, mean, deviation, mean - half, mean + half)


def student_quantile(freedom: int, coverage: float = 0.95) -> float:
    """The t with `P(|t_freedom| <= t) = coverage`, by bisection of the closed form for whole degrees of freedom.

    >>> round(student_quantile(4), 3)
    2.776
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _student_coverage(middle, freedom) < coverage:
            low = middle
        else:
            high = middle
    return math.tan(high) * math.sqrt(freedom)


def _student_coverage(theta: float, freedom: int) -> float:
    """`P(|t| <= tan(theta) sqrt(freedom))`: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2
    term, total = (cosine, cosine if freedom > 1 else 0.0) if odd else (1.0, 1.0)
    for power in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (power - 1) / power
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
