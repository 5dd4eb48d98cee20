"""Golden curves: the loss of every step and the accuracies of a trial, kept for each recipe.

After a change that is meant to change them: `python tests/checks/test_goldens.py [NAME ...]` writes the new ones.
"""

import json
import sys
from functools import partial

import pytest
from goldens import FILE, assert_as_kept

from contune.checks.run import checked_run
from contune.method.catalog import build_method, class_recipes


def test_every_golden_is_of_a_recipe() -> None:
    assert set(json.loads(FILE.read_text())) <= set(class_recipes())


def test_another_rank_is_another_curve() -> None:
    trial = checked_run(lambda: build_method("lora", {"rank": 4}))
    with pytest.raises(AssertionError):
        assert_as_kept("lora", trial)


if __name__ == "__main__":
    goldens = json.loads(FILE.read_text()) if FILE.exists() else {}
    for recipe in sys.argv[1:] or class_recipes():
        made = checked_run(partial(build_method, recipe, {}))
        goldens[recipe] = {"losses": made.losses, "scores": made.scores}
    FILE.write_text(json.dumps(dict(sorted(goldens.items())), indent=1) + "\n")
