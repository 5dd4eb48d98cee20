"""Golden curves: the loss of every step and the accuracies of a trial, kept for each recipe.

After a change that is meant to change them: `python tests/test_goldens.py [NAME ...]` writes the new ones.
"""

import json
import sys
from pathlib import Path

import pytest

from contune.method.catalog import build_method, class_recipes
from contune.trial import run_trial

FILE = Path(__file__).with_name("goldens.json")


def measured(name: str) -> dict[str, list[float]]:
    trial = run_trial(lambda: build_method(name, {}))
    return {"losses": trial.losses, "scores": trial.scores}


@pytest.mark.parametrize("name", class_recipes())
def test_the_curve_is_as_kept(name: str) -> None:
    kept = json.loads(FILE.read_text())
    assert name in kept, f"no golden of {name} yet: python tests/test_goldens.py {name}"
    found = measured(name)
    assert found["losses"] == pytest.approx(kept[name]["losses"], rel=2e-3, abs=2e-3)
    assert found["scores"] == pytest.approx(kept[name]["scores"], abs=0.07)


def test_a_changed_rate_changes_the_curve() -> None:
    trial = run_trial(lambda: build_method("lora", {"rank": 4}))
    assert trial.losses != pytest.approx(json.loads(FILE.read_text())["lora"]["losses"], rel=2e-3, abs=2e-3)


if __name__ == "__main__":
    goldens = json.loads(FILE.read_text()) if FILE.exists() else {}
    for recipe in sys.argv[1:] or class_recipes():
        goldens[recipe] = measured(recipe)
    FILE.write_text(json.dumps(dict(sorted(goldens.items())), indent=1) + "\n")
