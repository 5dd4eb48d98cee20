"""A run means the same wherever it is started, gone on with or asked: folders, consoles, locales, edited files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from run_helpers import config_text, resume, run
from tiny_models import save_tiny
from typer.testing import CliRunner

from contune.cli import app
from contune.errors import ConfigError, DataError
from contune.run.config import load_config, located
from contune.run.folder.unchanged import differences
from contune.run.predict import lines_of, load_learner

CONTUNE = [sys.executable, "-c", "from contune.cli import main; main()"]


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A folder with a configuration, its model and its data, all by relative paths."""
    folder = tmp_path / "conf"
    save_tiny("bert", folder / "models" / "tiny")
    rows = [{"text": f"{letter * 4} {number}", "label": letter} for letter in "ABCD" for number in range(3)]
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": {"path": "models/tiny"},
        "method": "nmc",
        "cache": {"folder": "kept"},
        "stream": {"data": {"train": "train.jsonl", "test": "test.jsonl"}, "tasks": 2},
    }
    (folder / "c.yaml").write_text("# Größe\n" + yaml.safe_dump(values), encoding="utf-8")
    return folder


def called(*words: str) -> str:
    done = CliRunner().invoke(app, [*words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_relative_paths_start_at_the_configuration_and_hold_everywhere(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path, conf, tmp_path / "elsewhere"]
    places[2].mkdir()
    for number, place in enumerate(places):
        monkeypatch.chdir(place)
        out = tmp_path / f"run{number}"
        called("run", os.path.relpath(conf / "c.yaml"), "--out", str(out), "-q")
        kept = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
        assert kept["model"]["path"] == str(conf / "models" / "tiny")
        assert kept["cache"]["folder"] == str(conf / "kept")
        assert kept["base"] == str(conf)
    assert list((conf / "kept").glob("*.safetensors"))
    for old in (tmp_path / "run1" / "checkpoints").glob("00002-*"):
        shutil.rmtree(old)
    called("resume", str(tmp_path / "run1"), "-q")
    answers = called("predict", str(tmp_path / "run1"), str(conf / "test.jsonl")).splitlines()
    assert len(answers) == 12


def test_a_model_that_lies_in_the_working_folder_alone_is_refused_with_both_folders(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (conf / "models").rename(tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    config, base = load_config("conf/c.yaml")
    with pytest.raises(ConfigError, match=r"no folder in .*conf.*, where the configuration's paths start"):
        located(config, base)


def test_names_of_models_stay_names(conf: Path) -> None:
    config, base = load_config(str(conf / "c.yaml"), ["model.path=owner/name"])
    assert located(config, base).model.path == "owner/name"


def test_a_run_ends_well_on_a_console_and_under_a_locale_that_are_not_utf_8(conf: Path, tmp_path: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [*CONTUNE, "run", str(conf / "c.yaml"), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, env=os.environ | env)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert (tmp_path / "run" / "report.html").exists()
    (tmp_path / "q.txt").write_text("größe ✓\n\nB\r\n", encoding="utf-8", newline="")
    command = [*CONTUNE, "predict", str(tmp_path / "run"), str(tmp_path / "q.txt")]
    done = subprocess.run(command, capture_output=True, env=os.environ | env)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert [json.loads(line)["input"] for line in done.stdout.decode("ascii").splitlines()] == ["größe ✓", "", "B"]


def test_lines_end_with_newlines_alone_and_blank_ones_are_inputs(tmp_path: Path) -> None:
    lines = ["a web page\u2028second half", "form\ffeed", "next\x85line", "", "  indented", "a\rb", "\x1c\x1d"]
    for end in ("\n", "\r\n"):
        for last in ("", end):
            (tmp_path / "q.txt").write_bytes((end.join(lines) + last).encode())
            assert lines_of(tmp_path / "q.txt") == lines
    (tmp_path / "q.txt").write_bytes(b"a\n\n")
    assert lines_of(tmp_path / "q.txt") == ["a", ""]
    (tmp_path / "q.txt").write_bytes(b"\n \n")
    with pytest.raises(DataError, match="holds no text"):
        lines_of(tmp_path / "q.txt")
    (tmp_path / "q.txt").write_bytes(b"a\xff\n")
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 2\)"):
        lines_of(tmp_path / "q.txt")


def stopped(folder: Path) -> Path:
    """A run of which the last two tasks are yet to be learned."""
    out = run(config_text("lora", epochs=1), folder / "run")
    for checkpoint in sorted((out / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    return out


def edited(out: Path, section: str, **values: object) -> None:
    kept = yaml.safe_load((out / "config.yaml").read_text())
    kept[section] = {**kept[section], **values} if isinstance(kept[section], dict) else values
    (out / "config.yaml").write_text(yaml.safe_dump(kept))


def test_a_run_goes_on_under_its_own_configuration_alone(tmp_path: Path) -> None:
    out = stopped(tmp_path)
    before = (out / "config.yaml").read_text()
    edited(out, "train", lr=0.5, epochs=4)
    with pytest.raises(ConfigError, match=r"train\.epochs was 1 and is 4; train\.lr was 0\.005 and is 0\.5"):
        resume(out)
    (out / "config.yaml").write_text(before)
    edited(out, "method", name="lora", rank=2)
    with pytest.raises(ConfigError, match=r"method\.rank is 2 and was not there"):
        resume(out)
    (out / "config.yaml").write_text(before)
    edited(out, "train", checkpoint_seconds=7)
    edited(out, "cache", memory_mb=100)
    resume(out)
    assert json.loads((out / "results.json").read_text())["finished"]
    edited(out, "train", lr=0.5)
    with pytest.raises(ConfigError, match=r"train\.lr was 0\.005"):
        load_learner(out)


def test_what_changes_no_number_may_change() -> None:
    before = {"model": {"path": "a", "feature": "auto"}, "stream": {"data": {"train": "x"}}, "device": "cpu"}
    now = {"model": {"path": "b", "feature": "auto"}, "stream": {"data": "y"}, "device": "cuda", "new": 1}
    assert differences(before, now) == []
    now["model"] = {"path": "b", "feature": "mean"}
    assert differences(before, now) == ["model.feature was 'auto' and is 'mean'"]
