"""Two models on the same examples: exact tests of flips, several tests at once, and intervals of a mean over suites.

`lost` counts the examples that the first answers rightly and the second wrongly, `won` those the other way round.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BATCH = 256  # resamples drawn at a time, so that memory does not grow with their number


@lru_cache(maxsize=4096)
def harm_p(lost: int, won: int) -> float:
    """Exact one-sided McNemar test: the chance of at least so many losses among all flips, if both ways were as likely.

    P(X >= lost) for X of a binomial of lost + won flips and 1/2 (McNemar 1947; exact: Mosteller 1952).

    >>> harm_p(5, 0), harm_p(0, 0)
    (0.03125, 1.0)
    """
    flips = lost + won
    tail = sum(math.comb(flips, count) for count in range(lost, flips + 1))
    return float(Fraction(tail, 2**flips))


def holm(values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, so that the chance of any false alarm keeps its level (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=lambda at: values[at])
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[at]))
        adjusted[at] = highest
    return adjusted


def mean_difference(differences: Sequence[Floats]) -> float:
    """Mean over suites of each suite's mean difference (n,) of scores, second less first; every suite counts the same.

    >>> mean_difference([np.array([0.0, 1.0]), np.array([0.0])])
    0.25
    """
    return float(np.mean([found.mean() for found in differences]))


def bootstrap_bounds(
    differences: Sequence[Floats], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """One-sided lower and upper bound, each at `level`, of that mean: a stratified paired bootstrap by percentiles.

    Each suite's examples are drawn anew with repetition within the suite, both answers to an example together (Efron and
    Tibshirani 1993, chapters 8 and 13). Equal inputs give equal bounds.

    >>> bootstrap_bounds([np.zeros(10)])
    (0.0, 0.0)
    """
    generator = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for found in differences:
        kinds, counts = np.unique(found, return_counts=True)
        drawn = generator.multinomial(len(found), counts / len(found), size=resamples)
        means += drawn @ kinds / len(found)
    means /= len(differences)
    low, high = np.quantile(means, [1 - level, level])
    return float(low), float(high)


def wilson(right: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), right also near 0 and 1 and for few examples.

    >>> [round(bound, 3) for bound in wilson(9, 10)]
    [0.596, 0.982]
    """
    if not n:
        return 0.0, 1.0
    share, spread = right / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def normal_cdf(value: float) -> float:
    """P(Z <= value) of a standard normal variable.

    >>> round(normal_cdf(1.644854), 4)
    0.95
    """
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


def chance_to_find(n: int, drop: float, churn: float, level: float) -> float:
    """Power of `harm_p` at `level`: the chance that a suite of n examples shows that a share `drop` was lost for good.

    Beside the drop, a share `churn` of the examples flips, half of it each way. Flips are Poisson variables here, which
    leaves out that they exclude each other, and so errs on the side of caution.

    >>> 0.9 < chance_to_find(200, 0.10, 0.03, 0.005) < 1.0
    True
    """
    worse, better = n * (drop + churn / 2), n * churn / 2
    lost, won = poisson_weights(worse, n), poisson_weights(better, n)
    found, most = 0.0, [-1] * (n + 1)
    for count in range(n + 1):
        start = most[count - 1] if count else -1
        while start + 1 <= n and harm_p(count, start + 1) <= level:
            start += 1
        most[count] = start
        if start >= 0:
            found += float(lost[count] * won[: start + 1].sum())
        if lost[count:].sum() < 1e-12:
            break
    return found


def poisson_weights(mean: float, n: int) -> Floats:
    """P(X = 0), ..., P(X = n) of a Poisson variable (n + 1,)."""
    if not mean:
        return np.asarray(np.eye(n + 1)[0], dtype=np.float64)
    logs = np.array([k * math.log(mean) - mean - math.lgamma(k + 1) for k in range(n + 1)])
    return np.asarray(np.exp(logs), dtype=np.float64)
