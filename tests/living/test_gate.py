"""The gate decides as its rules say, and as the simulation behind its defaults has found."""

import numpy as np
import pytest

from contune.living.gate.decide import Suite, Verdict, decide
from contune.living.gate.power import power_of
from contune.living.gate.rules import GateRules
from contune.numerics.paired import bootstrap_bounds, chance_to_find, harm_p, holm, mean_difference

SUITES, N, CHURN, RUNS = 10, 200, 0.055, 400


def flipped(generator: np.random.Generator, lost: int, won: int) -> Suite:
    """A suite of 200 of which so many were lost and won."""
    live = np.ones(N)
    live[lost : lost + won] = 0.0
    candidate = np.ones(N)
    candidate[:lost] = 0.0
    return Suite(f"suite {generator.integers(10**9)}", live, candidate)


def update(generator: np.random.Generator, harm: int) -> list[Suite]:
    """An update that flips 5.5 % of all answers, half of them each way, and loses `harm` examples of one suite beside."""
    lost, won = generator.binomial(N, CHURN / 2, size=(2, SUITES))
    lost[0] += harm
    return [flipped(generator, int(a), int(b)) for a, b in zip(lost, won, strict=True)]


def by_points(suites: list[Suite]) -> bool:
    """A rule without chance: no suite may lose more than two points."""
    return all(suite.candidate.mean() >= suite.live.mean() - 0.02 for suite in suites)


def by_mean(suites: list[Suite]) -> bool:
    """A rule on the mean alone."""
    return mean_difference([suite.candidate - suite.live for suite in suites]) >= -0.02


def test_the_simulation_behind_the_defaults() -> None:
    generator = np.random.default_rng(18)
    harmless, harmful = ([update(generator, harm) for _ in range(RUNS)] for harm in (0, 20))
    rules = GateRules(resamples=400)

    def share(rule: object, updates: list[list[Suite]]) -> float:
        return float(np.mean([rule(suites) for suites in updates]))  # type: ignore[operator]

    def gate(suites: list[Suite]) -> bool:
        return decide(suites, rules).outcome == "promote"

    assert share(gate, harmless) == pytest.approx(0.97, abs=0.025)
    assert share(gate, harmful) <= 0.005
    assert share(by_points, harmless) == pytest.approx(0.43, abs=0.05)
    assert share(by_mean, harmful) == pytest.approx(0.98, abs=0.02)


def test_harm_in_one_suite_blocks_and_says_where() -> None:
    generator = np.random.default_rng(0)
    suites = [flipped(generator, 2, 2) for _ in range(5)]
    verdict = decide([*suites, Suite("march", np.ones(200), np.repeat([0.0, 1.0], [30, 170]))])
    assert verdict.outcome == "blocked"
    assert "march is worse: 30 of 200 lost and 0 won" in verdict.sentence
    assert verdict.exit_code == 3


def test_harm_in_a_slice_blocks_where_slices_are_declared() -> None:
    live, candidate = np.ones(2000), np.ones(2000)
    candidate[:12] = 0
    hidden = decide([Suite("march", live, candidate)])
    seen = decide([Suite("march", live, candidate, slices={"refund": range(15), "other": range(15, 2000)})])
    assert seen.outcome == "blocked"
    assert "march: refund" in seen.sentence
    assert hidden.compared[0].p == seen.compared[0].p


def test_few_examples_are_not_enough_and_say_how_many_would_be() -> None:
    live, candidate = np.ones(50), np.ones(50)
    live[0] = candidate[1] = candidate[2] = 0
    verdict = decide([Suite("january", live, candidate)])
    assert verdict.outcome == "not enough evidence"
    assert verdict.exit_code == 4
    assert "773 examples a suite" in verdict.sentence


@pytest.mark.parametrize(
    ("right", "outcome", "said"),
    [
        (90, "promote", "0 % before and 90 % now"),
        (45, "not enough evidence", "below the floor"),
        (10, "blocked", "floor"),
    ],
)
def test_the_new_suite_must_be_learned(right: int, outcome: str, said: str) -> None:
    candidate = np.repeat([1.0, 0.0], [right, 100 - right])
    verdict = decide([Suite("may", np.zeros(100), candidate, new=True)])
    assert verdict.outcome == outcome
    assert said in verdict.sentence


def test_a_new_suite_that_is_answered_as_before_is_no_gain() -> None:
    same = np.repeat([1.0, 0.0], [90, 10])
    assert decide([Suite("may", same, same, new=True)]).outcome == "not enough evidence"
    assert decide([Suite("may", same, same, new=True)], GateRules(gain=False)).outcome == "promote"
    known = np.repeat([1.0, 0.0], [97, 3])  # three wrong answers cannot show a gain, whatever becomes of them
    assert decide([Suite("may", known, known, new=True)]).outcome == "promote"
    few = np.zeros(4)
    assert decide([Suite("may", few, few + 1, new=True)]).outcome == "not enough evidence"


def test_nothing_to_measure_by_is_no_evidence() -> None:
    assert decide([]).outcome == "not enough evidence"


def test_a_verdict_is_kept_as_plain_values() -> None:
    verdict = decide([Suite("may", np.zeros(100), np.ones(100), new=True)])
    assert Verdict.of(verdict.values()) == verdict


def test_exact_p_values_by_hand() -> None:
    assert harm_p(3, 1) == 5 / 16
    assert harm_p(0, 9) == 1.0
    assert holm([0.02, 0.02]) == [0.04, 0.04]


def test_the_bootstrap_is_the_normal_interval_where_that_is_right() -> None:
    generator = np.random.default_rng(1)
    found = generator.choice([-1.0, 0.0, 1.0], size=2000, p=[0.05, 0.9, 0.05])
    low, high = bootstrap_bounds([found], resamples=4000)
    half = 1.645 * found.std() / len(found) ** 0.5
    assert low == pytest.approx(found.mean() - half, abs=0.001)
    assert high == pytest.approx(found.mean() + half, abs=0.001)


def test_the_power_that_is_said_is_the_power_there_is() -> None:
    generator = np.random.default_rng(2)
    said = power_of([N] * SUITES, GateRules(churn=CHURN))
    drop = said.drop or 0.0
    lost = generator.binomial(N, CHURN / 2, 4000) + generator.binomial(N, drop, 4000)
    won = generator.binomial(N, CHURN / 2, 4000)
    found = np.mean([harm_p(int(a), int(b)) <= 0.005 for a, b in zip(lost, won, strict=True)])
    assert found == pytest.approx(chance_to_find(N, drop, CHURN, 0.005), abs=0.04)
    assert 0.78 <= found <= 0.9
