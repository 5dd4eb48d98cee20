"""Goldens of every recipe, and the planted changes that they must catch.

After a change that is meant to move them: `python tests/checks/test_goldens.py [NAME ...]` writes the new ones.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # as in the tests: the number of threads decides the last bits
    sys.path.append(str(Path(__file__).parents[1] / "helpers"))

import pytest
import torch
from goldens import (
    FOLDER,
    OLDEST,
    assert_as_kept,
    differences,
    golden_of,
    kept_settings,
    measure_all,
    measured,
    settings_of,
    write_goldens,
)
from slow_subset import only

from contune.checks.run import checked_run
from contune.checks.setting import settings
from contune.checks.sizes import checked_method
from contune.method.catalog import class_recipes, recipes

OTHERS = [(name, setting) for name, setting in kept_settings() if setting != "images"]
BY_DEFAULT = [
    *((name, "answers") for name in ("dualprompt", "ewc", "lfpt5", "o-lora")),
    *((name, "texts") for name in ("er", "l2p", "ranpac")),
]
CHANGES: list[tuple[str, str, Any]] = [
    ("slca", "shrink", 0.5),
    ("slca++", "reverse_weight", 0.2),
    ("ewc", "strength", 50.0),
    ("l2", "strength", 0.02),
    ("lwf", "temperature", 1.0),
    ("i-lora", "weight", 0.5),
    ("lae", "decay", 0.999),
    ("stable-finetune", "decay", 0.8),
    ("seq-star", "warmup_epochs", 2),
    ("lora", "rank", 4),
    ("ease", "alpha", 0.2),
    ("ranpac", "random_features", 1000),
    ("acil", "gamma", 0.2),
    ("o-lora", "strength", 0.25),
    ("inflora", "threshold", 0.9),
    ("sd-lora", "magnitude", 0.7),
    ("migu", "masked", 0.6),
    ("hft", "share", 0.4),
    ("gem", "margin", 0.25),
    ("gpm", "threshold", 0.9),
    ("osf", "target", 0.7),
    ("coda-prompt", "orthogonality", 0.1),
    ("l2p", "pull", 0.2),
    ("der++", "beta", 0.25),
]
WRITTEN_CHANGES: list[tuple[str, str, Any]] = [
    ("lfpt5", "distillation", 0.02),
    ("lcia", "threshold", 0.9),
    ("sapt", "weight", 0.25),
]


def test_every_recipe_has_its_golden_and_every_golden_its_recipe() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(recipes())
    classes = set(class_recipes())
    assert {name for name, setting in kept_settings() if setting == "images"} == classes
    assert set(recipes()) - classes < {name for name, setting in kept_settings() if setting == "answers"}


@pytest.mark.slow
def test_a_golden_is_there_wherever_a_recipe_is_accepted() -> None:
    for name in recipes():
        assert golden_of(name).keys() - {"reference"} == {setting.name for setting in settings_of(name)}


@pytest.mark.parametrize(("name", "setting"), only(BY_DEFAULT, OTHERS))
def test_golden_beside_images(name: str, setting: str) -> None:
    assert_as_kept(name, checked_run(partial(checked_method, name), settings()[setting]))


@pytest.mark.parametrize(("name", "option", "value"), CHANGES)
def test_a_changed_option_is_caught(name: str, option: str, value: Any) -> None:
    caught_elsewhere(name, option, value, "images")


@pytest.mark.parametrize(("name", "option", "value"), only(WRITTEN_CHANGES[:1], WRITTEN_CHANGES))
def test_a_changed_option_is_caught_in_writing(name: str, option: str, value: Any) -> None:
    caught_elsewhere(name, option, value, "answers")


def caught_elsewhere(name: str, option: str, value: Any, setting: str) -> None:
    """The golden differs from a run with this option, even where other processors are given room."""
    found = measured(checked_run(partial(checked_method, name, **{option: value}), settings()[setting]))
    assert differences(golden_of(name)[setting], found, exact=False) != []


def test_numbers_are_compared_as_closely_as_the_file_says() -> None:
    kept = {
        "losses": [1.0, 2.0],
        "scores": [0.5],
        "state": "a",
        "norms": {"w": 1.0, "k": 3.0},
        "elsewhere": {"norm of k": 0.2},
    }
    assert differences(kept, kept, exact=True) == differences(kept, kept, exact=False) == []
    assert differences(kept, {**kept, "state": "b"}, exact=True) == ["state"]
    assert differences(kept, {**kept, "state": "b"}, exact=False) == []
    near, far = ({**kept, "losses": [1.0 + moved, 2.0]} for moved in (5e-7, 2e-6))
    assert differences(kept, near, exact=True) == ["losses"]
    assert differences(kept, near, exact=False) == []
    assert len(differences(kept, far, exact=False)) == 1
    assert len(differences(kept, {**kept, "losses": [1.0]}, exact=False)) == 1
    assert differences(kept, {**kept, "norms": {"w": 1.0, "k": 9.0}}, exact=False) == []
    assert len(differences(kept, {**kept, "norms": {"w": 1.1, "k": 3.0}}, exact=False)) == 1
    assert len(differences(kept, {**kept, "norms": {"w": 1.0}}, exact=False)) == 1


@pytest.mark.slow
def test_the_oldest_instructions_stay_within_what_is_allowed() -> None:
    """The comparison for other processors, on this one made to compute like another."""
    names = ["lora", "slca", "corda", "l2p"]
    command = [sys.executable, __file__, "--measure", *names]
    done = subprocess.run(command, env=os.environ | OLDEST, stdout=subprocess.PIPE, text=True, check=True)
    otherwise = json.loads(done.stdout.splitlines()[-1])
    for name in names:
        for setting, found in otherwise[name].items():
            assert differences(golden_of(name)[setting], found, exact=False) == []


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure_all(sys.argv[2:])))
    else:
        write_goldens(sys.argv[1:])
