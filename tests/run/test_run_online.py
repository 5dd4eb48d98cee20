"""Runs of streams without tasks: one line of YAML, accuracy along the way, a stop in a chunk and the same bits after it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_helpers import config_text, resume, run, same_run

from contune.engine.learner import Learner
from contune.errors import CombinationError
from contune.run.report.report import write_report

ER = {"name": "er", "size": 20, "batch_size": 4}


def online_text(method: Any, **online: Any) -> str:
    values = yaml.safe_load(config_text(method, checkpoint_steps=7))
    values["stream"]["online"] = {"chunk": 4, "evaluate_every": 16, **online}
    return yaml.safe_dump(values)


@pytest.mark.parametrize("method", [ER, "nmc"], ids=["er", "nmc"])
def test_a_run_of_chunks_is_stopped_anywhere_and_ends_with_the_same_bits(method: Any, tmp_path: Path) -> None:
    whole = run(online_text(method), tmp_path / "whole")
    results = json.loads((whole / "results.json").read_text())
    assert results["finished"]
    assert len(results["accuracy_matrix"]) == 5
    assert results["metrics"]["anytime_accuracy"] == pytest.approx(
        sum(value for _, value in results["anytime"]) / len(results["anytime"])
    )
    assert [examples for examples, _ in results["anytime"]] == sorted(examples for examples, _ in results["anytime"])
    report = write_report([whole], tmp_path / "report.html").read_text()
    assert "Anytime accuracy" in report
    for stop in (3, 17, 40):
        cut = stopped(method, tmp_path / f"cut{stop}", stop)
        assert not json.loads((cut / "results.json").read_text())["finished"]
        resume(cut)
        same_run(whole, cut)
        shutil.rmtree(cut)


def stopped(method: Any, folder: Path, after: int) -> Path:
    """The run as a kill after so many chunks leaves it."""
    observe, seen = Learner.observe, [0]

    class Killed(Exception):
        pass

    def dying(self: Learner, *args: Any, **more: Any) -> None:
        if seen[0] == after:
            raise Killed
        seen[0] += 1
        observe(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "observe", dying)
        with pytest.raises(Killed):
            run(online_text(method), folder)
    if not (folder / "results.json").exists():
        (folder / "results.json").write_text(json.dumps({"finished": False}))
    return folder


def test_a_method_that_waits_for_tasks_is_refused_before_any_compute(tmp_path: Path) -> None:
    with pytest.raises(CombinationError, match="'ewc' waits for a task to begin or end"):
        run(online_text("ewc"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
