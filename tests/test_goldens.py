"""Golden curves: the loss of every step and the accuracies of a trial, kept for each recipe.

After a change that is meant to change them: `python tests/test_goldens.py [NAME ...]` writes the new ones.
"""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from contune.method.catalog import build_method, class_recipes
from contune.trial import Trial, run_trial

FILE = Path(__file__).with_name("goldens.json")


def assert_as_kept(name: str, trial: Trial) -> None:
    """The curve is the golden one; the common checks of every recipe ask this of their trial."""
    kept = json.loads(FILE.read_text())
    assert name in kept, f"no golden of {name} yet: python tests/test_goldens.py {name}"
    assert trial.losses == pytest.approx(kept[name]["losses"], rel=2e-3, abs=2e-3)
    assert trial.scores == pytest.approx(kept[name]["scores"], abs=0.07)


def test_every_golden_is_of_a_recipe() -> None:
    assert set(json.loads(FILE.read_text())) <= set(class_recipes())


def test_another_rank_is_another_curve() -> None:
    trial = run_trial(lambda: build_method("lora", {"rank": 4}))
    with pytest.raises(AssertionError):
        assert_as_kept("lora", trial)


if __name__ == "__main__":
    goldens = json.loads(FILE.read_text()) if FILE.exists() else {}
    for recipe in sys.argv[1:] or class_recipes():
        made = run_trial(partial(build_method, recipe, {}))
        goldens[recipe] = {"losses": made.losses, "scores": made.scores}
    FILE.write_text(json.dumps(dict(sorted(goldens.items())), indent=1) + "\n")
