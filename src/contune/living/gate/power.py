"""What the gate can find with the suites there are, said before it looks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from contune.living.gate.rules import GateRules
from contune.numerics.paired import chance_to_find, normal_cdf

Z = 1.6448536269514722  # of a one-sided bound at 95 %
WANTED = 0.8  # the usual power of a planned test (Cohen 1988)
Z_WANTED = 0.8416212335729143


@final
@dataclass(frozen=True)
class Power:
    """`harmless`: the chance that an update that changes nothing is seen to be harmless. `drop`: the smallest loss of the
    smallest suite, as a share, that is found with a chance of 80 %; None where no loss would be. `wanted`: examples a suite
    that would raise `harmless` to 80 %.
    """

    harmless: float
    drop: float | None
    wanted: int
    sentence: str


def power_of(sizes: Sequence[int], rules: GateRules) -> Power:
    """The power of the gate with earlier suites of these sizes.

    The mean of k suites with n_i examples, a share `churn` of which flips, has the variance sum(churn / n_i) / k^2; the
    bound then clears the margin with the chance Phi(margin / s - 1.645).

    >>> power_of([200] * 10, GateRules()).sentence
    'With 10 suites of 200 examples a harmless update is seen to be so with a chance of 99 %, and a loss of 10 points in \
one suite is found with a chance of 80 %.'
    >>> power_of([50], GateRules()).wanted
    773
    """
    if not sizes:
        return Power(1.0, None, 0, "There is no earlier suite that could have been harmed.")
    spread = math.sqrt(sum(rules.churn / n for n in sizes)) / len(sizes)
    harmless = normal_cdf(rules.margin / spread - Z)
    wanted = math.ceil(rules.churn * ((Z + Z_WANTED) / rules.margin) ** 2 / len(sizes))
    level, smallest = rules.alpha / len(sizes), min(sizes)
    drop = next(
        (d / 100 for d in range(1, 100) if chance_to_find(smallest, d / 100, rules.churn, level) >= WANTED), None
    )
    return Power(harmless, drop, wanted, sentence_of(sizes, harmless, drop, wanted))


def sentence_of(sizes: Sequence[int], harmless: float, drop: float | None, wanted: int) -> str:
    """The power in words."""
    low, high = min(sizes), max(sizes)
    many = "1 suite" if len(sizes) == 1 else f"{len(sizes)} suites"
    size = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    found = "no loss in one suite would be found with a chance of 80 %"
    if drop is not None:
        which = "one suite" if low == high else "the smallest suite"
        found = f"a loss of {100 * drop:.0f} points in {which} is found with a chance of 80 %"
    said = f"With {many} of {size} examples a harmless update is seen to be so with a chance of {100 * harmless:.0f} %, and "
    more = f"; {wanted:,} examples a suite would make that 80 %" if harmless < WANTED else ""
    return said + found + more + "."
