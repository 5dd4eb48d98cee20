"""Every recipe learns on a device of its own, as on a GPU: on one that is not there, which refuses what a GPU refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from slow_subset import ONE_IN, SHARES

from contune.method.catalog import recipes

HELPERS = Path(__file__).parents[1] / "helpers"
STREAMS = ("images", "language")


def tried(names: list[str]) -> dict[tuple[str, str], str | None]:
    """What went wrong, by recipe and stream; a process of its own, as the device cannot be taken out of torch again."""
    paths = os.pathsep.join([str(HELPERS), str(HELPERS.parents[1] / "src")])
    command = [sys.executable, str(HELPERS / "accelerator_worker.py"), *names]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(row["recipe"], row["stream"]): row["problem"] for row in rows}


@pytest.mark.parametrize("share", SHARES)
def test_recipes_learn_on_a_device_and_what_is_left_behind_is_found(share: int) -> None:
    names = list(recipes())[share::ONE_IN]
    problems = tried([*names, "run", "left-behind"] if share == 0 else names)
    planted = [problems.pop(("left-behind", stream)) for stream in STREAMS if share == 0]
    assert all(problem is not None and "of far:0 and of the processor" in problem for problem in planted)
    assert problems.pop(("run", "whole_run"), None) is None
    assert problems == {(name, stream): None for name in names for stream in STREAMS}
