"""The public face: names, five lines from a data frame to a matrix, a method of one's own begun by a command."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner
from word_tasks import tiny_folder

import contune
from contune.checks.run import tiny_model
from contune.cli import app
from contune.errors import ConfigError


def test_every_public_name_is_there_and_none_is_imported_before_it_is_used() -> None:
    assert all(getattr(contune, name) is not None for name in contune.__all__)
    assert {
        "Learner",
        "Session",
        "Method",
        "Adapter",
        "Head",
        "Rule",
        "Router",
        "Objective",
        "State",
        "Results",
    } <= set(dir(contune))
    code = "import contune, sys; assert 'torch' not in sys.modules; contune.Kind"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "has no attribute 'Kind'" in done.stderr


def test_parts_and_recipes_are_attributes() -> None:
    assert contune.adapters.lora(rank=2).name == "lora"
    assert contune.rules.der_plus_plus().name == "der++"
    assert contune.methods.nmc().head.name == "class-means"
    assert "ridge" in dir(contune.heads)
    with pytest.raises(AttributeError, match="did you mean 'lora'"):
        contune.adapters.loar  # noqa: B018


def test_five_lines_from_a_frame_to_a_matrix() -> None:
    pandas = pytest.importorskip("pandas")
    words = ["aaaa", "bbbb", "cccc", "dddd"]
    rows = [{"text": f"{word} {number % 5}", "label": f"about {word}"} for number in range(20) for word in words]
    frame = pandas.DataFrame(rows)
    stream = contune.Stream.of(train=frame, test=frame, tasks=2)
    learner = contune.Learner(str(tiny_folder("bert")), "nmc")
    results = contune.Session(learner, stream).run()
    assert len(results.matrix) == 2
    assert results.metrics["last_accuracy"] > 0.8  # type: ignore[operator]
    assert repr(results).startswith("Accuracy in percent: last ")
    answers = learner.predict(["aaaa 1"])
    assert [str(answer) for answer in answers] == ["about aaaa"]
    assert answers[0].score == max(answers[0].scores.values())


def test_a_session_of_chunks_has_accuracy_along_the_way() -> None:
    stream = contune.load_stream(contune.StreamConfig(data="digits", per_class=12))
    learner = contune.Learner(tiny_model(), "nmc")
    results = contune.Session(learner, stream, online=contune.Online(chunk=3, evaluate_every=20)).run()
    whole = contune.Session(contune.Learner(tiny_model(), "nmc"), stream).run()
    assert results.matrix == whole.matrix, "class means do not depend on how the examples come"
    assert [examples for examples, _ in results.anytime] == [21, 42, 60, 81, 102, 120]
    assert results.metrics["anytime_accuracy"] == pytest.approx(
        sum(value for _, value in results.anytime) / len(results.anytime)
    )


def test_a_method_begun_by_the_command_passes_the_common_checks(tmp_path: Path) -> None:
    runner = CliRunner()
    begun = runner.invoke(app, ["new", "method", "slow-anchor", "--out", str(tmp_path)])
    assert begun.exit_code == 0
    path = tmp_path / "slow_anchor.py"
    assert f"contune check {path}" in begun.output
    checked = runner.invoke(app, ["check", str(path), "--on", "images"])
    assert checked.exit_code == 0, checked.output
    assert "FAIL" not in checked.output
    again = runner.invoke(app, ["new", "method", "slow-anchor", "--out", str(tmp_path)])
    assert isinstance(again.exception, ConfigError)
    assert "never overwritten" in str(again.exception)
    odd = runner.invoke(app, ["new", "method", "Slow Anchor", "--out", str(tmp_path)])
    assert "small letters" in str(odd.exception)
