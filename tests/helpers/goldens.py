"""Golden curves of the recipes, and the assertion that a trial still gives them."""

import json
from pathlib import Path

import pytest

from contune.checks.run import CheckRun

FILE = Path(__file__).parents[1] / "checks" / "goldens.json"


def assert_as_kept(name: str, trial: CheckRun) -> None:
    """The curve is the golden one; the common checks of every recipe ask this of their trial."""
    kept = json.loads(FILE.read_text())
    assert name in kept, f"no golden of {name} yet: python tests/checks/test_goldens.py {name}"
    assert trial.losses == pytest.approx(kept[name]["losses"], rel=2e-3, abs=2e-3)
    assert trial.scores == pytest.approx(kept[name]["scores"], abs=0.07)
