"""The decision: from two versions' scores on the same frozen examples to an outcome and a sentence. Pure functions.

```text
harm      exact McNemar on the flips of every suite and slice, Holm over all of them       -> blocked
mean      stratified paired bootstrap of the mean over earlier suites against the margin   -> blocked, or ask for more
suite     no suite seems to lose more than its own margin                                  -> ask for more
new       the new suite is answered better than before, and above the floor                -> blocked, or ask for more
```
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from contune.living.gate.power import Power, power_of
from contune.living.gate.rules import GateRules
from contune.numerics.paired import bootstrap_bounds, harm_p, holm, mean_difference, wilson

Outcome = Literal["promote", "blocked", "not enough evidence"]
EXIT_CODES: Mapping[Outcome, int] = {"promote": 0, "blocked": 3, "not enough evidence": 4}
RIGHT = 0.5  # a score from here on counts as a right answer where answers are right or wrong


@final
@dataclass(frozen=True, eq=False)
class Suite:
    """Scores (n,) from 0 to 1 of two versions on the same examples.

    `new`: the candidate has learned what this suite measures and the live version has not. `slices` name rows.
    """

    name: str
    live: NDArray[np.float64]
    candidate: NDArray[np.float64]
    new: bool = False
    slices: Mapping[str, Sequence[int]] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Compared:
    """One suite or slice: how many examples, how well each version answers, the flips, and how likely they are by chance.

    `p` is that of harm, `adjusted` the same by Holm's rule; `low` and `high` bound the change at 95 %.
    """

    name: str
    n: int
    live: float
    candidate: float
    lost: int
    won: int
    p: float
    adjusted: float
    new: bool
    low: float
    high: float


@final
@dataclass(frozen=True)
class Verdict:
    """What the gate found. `sentence` holds the figures it was decided by, `power` what could be found at all."""

    outcome: Outcome
    sentence: str
    power: Power
    compared: tuple[Compared, ...]
    mean: float | None
    low: float | None
    high: float | None

    @property
    def exit_code(self) -> int:
        """That of `contune gate`."""
        return EXIT_CODES[self.outcome]

    def values(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @staticmethod
    def of(values: Mapping[str, Any]) -> "Verdict":
        """The verdict that `values` gave."""
        compared = tuple(Compared(**found) for found in values["compared"])
        return Verdict(**{**values, "power": Power(**values["power"]), "compared": compared})


def decide(suites: Sequence[Suite], rules: GateRules | None = None) -> Verdict:
    """Whether a candidate may take the live version's place.

    >>> same = np.ones(200)
    >>> decide([Suite("january", same, same), Suite("february", 0 * same, same, new=True)]).outcome
    'promote'
    """
    rules = rules or GateRules()
    earlier = [suite for suite in suites if not suite.new]
    power = power_of([len(suite.live) for suite in earlier], rules)
    compared = compare(suites, rules)
    mean = low = high = None
    if earlier:
        differences = [suite.candidate - suite.live for suite in earlier]
        mean = mean_difference(differences)
        low, high = bootstrap_bounds(differences, resamples=rules.resamples, seed=rules.seed)
    harmed = [found for found in compared if found.adjusted < rules.alpha]
    against = [
        *(f"{found.name} is worse: {flips(found)}, p {found.adjusted:.1g} after Holm" for found in harmed),
        *([] if high is None or high >= -rules.margin else [f"the mean moved by {mean_of(mean, low, rules)}"]),
        *(f"{one.name} stays below the floor: {below(one, rules)}" for one in compared if hopeless(one, rules)),
    ]
    if against:
        return Verdict("blocked", "Blocked: " + "; ".join(against) + ".", power, tuple(compared), mean, low, high)
    missing = doubts(compared, mean, low, rules)
    if missing:
        said = "Not enough evidence: " + "; ".join(missing) + f". {power.sentence}"
        return Verdict("not enough evidence", said, power, tuple(compared), mean, low, high)
    said = "Promote: " + "; ".join(evidence(compared, mean, low, rules)) + "."
    return Verdict("promote", said, power, tuple(compared), mean, low, high)


def compare(suites: Sequence[Suite], rules: GateRules) -> list[Compared]:
    """Every suite, then every slice of it, with the chance of its flips."""
    found: list[tuple[str, NDArray[np.float64], NDArray[np.float64], bool]] = []
    for suite in suites:
        found.append((suite.name, suite.live, suite.candidate, suite.new))
        for name, rows in suite.slices.items():
            at = np.asarray(rows, dtype=np.int64)
            found.append((f"{suite.name}: {name}", suite.live[at], suite.candidate[at], suite.new))
    lost = [int(((live >= RIGHT) & (candidate < RIGHT)).sum()) for _, live, candidate, _ in found]
    won = [int(((live < RIGHT) & (candidate >= RIGHT)).sum()) for _, live, candidate, _ in found]
    values = [harm_p(*pair) for pair in zip(lost, won, strict=True)]
    adjusted = holm(values)
    compared = []
    for number, (name, live, candidate, new) in enumerate(found):
        bounds = bootstrap_bounds([candidate - live], level=0.975, resamples=rules.resamples, seed=rules.seed)
        means = float(live.mean()), float(candidate.mean())
        compared.append(
            Compared(name, len(live), *means, lost[number], won[number], values[number], adjusted[number], new, *bounds)
        )
    return compared


def hopeless(found: Compared, rules: GateRules) -> bool:
    """Whether a new suite is below the floor, chance allowed for."""
    return found.new and wilson(found.candidate * found.n, found.n)[1] < rules.floor


def doubts(compared: Sequence[Compared], mean: float | None, low: float | None, rules: GateRules) -> list[str]:
    """What is not shown yet, each as a clause."""
    if not compared:
        return ["there is no suite to measure by; give --test"]
    said = []
    if low is not None and low < -rules.margin:
        said.append(f"the mean may have lost more than the margin, {mean_of(mean, low, rules)}")
    for found in compared:
        whole = ": " not in found.name
        if whole and found.live - found.candidate > rules.suite_margin:
            said.append(
                f"{found.name} seems to have lost more than {points(rules.suite_margin)} points: {flips(found)}"
            )
        if whole and found.new and not gained(found, rules):
            said.append(f"{found.name} is not shown to be answered better than before: {shares(found)}, {flips(found)}")
        if whole and found.new and found.candidate < rules.floor:
            said.append(f"{found.name} is below the floor: {below(found, rules)}")
    return said


def gained(found: Compared, rules: GateRules) -> bool:
    """Whether a new suite is shown to be answered better than before, or was answered so well that nobody could show it.

    >>> known = Compared("june", 64, 1.0, 1.0, 0, 0, 1.0, 1.0, True, 0.0, 0.0)
    >>> gained(known, GateRules())
    True
    """
    wrong = round((1 - found.live) * found.n)
    full = found.live >= rules.floor and harm_p(wrong, 0) > rules.alpha and found.candidate >= found.live
    return not rules.gain or full or harm_p(found.won, found.lost) <= rules.alpha


def evidence(compared: Sequence[Compared], mean: float | None, low: float | None, rules: GateRules) -> list[str]:
    """What speaks for the candidate, each as a clause."""
    earlier = [found for found in compared if not found.new and ": " not in found.name]
    said = [f"{found.name} {shares(found)}" for found in compared if found.new and ": " not in found.name]
    if earlier:
        n, lost, won = (sum(getattr(found, name) for found in earlier) for name in ("n", "lost", "won"))
        suites = "1 earlier suite" if len(earlier) == 1 else f"{len(earlier)} earlier suites"
        said.append(f"of {n:,} examples in {suites} {lost:,} were lost and {won:,} won")
        said.append(f"the mean moved by {mean_of(mean, low, rules)}")
        said.append(
            f"no suite is shown to be worse (smallest p {min(one.adjusted for one in compared):.2g} after Holm)"
        )
    return said


def points(share: float) -> str:
    """A share in percentage points.

    >>> points(-0.0123), points(0.0)
    ('-1.2', '0.0')
    """
    return f"{100 * share + 0.0:.1f}"


def mean_of(mean: float | None, low: float | None, rules: GateRules) -> str:
    """The mean's change with its bound."""
    return f"{points(mean or 0.0)} points (95 % bound {points(low or 0.0)}, margin {points(-rules.margin)})"


def flips(found: Compared) -> str:
    """The flips in words."""
    return f"{found.lost:,} of {found.n:,} lost and {found.won:,} won"


def shares(found: Compared) -> str:
    """Before and now in words."""
    return f"{100 * found.live:.0f} % before and {100 * found.candidate:.0f} % now"


def below(found: Compared, rules: GateRules) -> str:
    """How far below the floor."""
    return f"{100 * found.candidate:.0f} % of {found.n:,}, and {100 * rules.floor:.0f} % is asked for"
