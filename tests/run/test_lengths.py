"""What does not fit is found before anything is trained, in every task, its tests and its options; what is cut is said."""

import json
from pathlib import Path
from typing import Any

import pytest
from language_tasks import TRAIN, WRITER, write_rows
from run_helpers import run
from typer.testing import CliRunner
from word_tasks import tiny_folder

from contune.cli import app
from contune.errors import DataError
from contune.run.report.report import write_report

SHORT = [{"question": f"q{at}", "answer": "yes" if at % 2 else "no"} for at in range(4)]
LONG = {"question": "x" * 300, "answer": "no"}


def config_of(folder: Path, where: str, row: dict[str, Any], **language: Any) -> str:
    files: dict[str, dict[str, str]] = {"train": {}, "test": {}}
    for split, names in files.items():
        for name in ("one", "two"):
            rows = [*SHORT[:3], row] if (split, name) == (where, "two") else SHORT
            names[name] = write_rows(folder / f"{name}-{split}.jsonl", rows)
    stream = {"objective": "write", "data": files, "order_seed": None, "language": language}
    return json.dumps({"model": {"path": WRITER}, "stream": stream, "method": "lora", "train": {**TRAIN, "epochs": 1}})


@pytest.mark.parametrize("where", ["train", "test"])
def test_a_prompt_that_does_not_fit_is_named_before_the_first_task(where: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"'two': the prompt of .*two-{where}\.jsonl, line 4 .* has 303 tokens"):
        run(config_of(tmp_path, where, LONG), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_option_that_does_not_fit_is_named_before_the_first_task(tmp_path: Path) -> None:
    row = {"question": "w" * 100, "answer": "no"}
    config = config_of(tmp_path, "test", row, options=["yes", "no", "z" * 40])
    with pytest.raises(DataError, match=r"two-test\.jsonl, line 4 .* has 103 tokens and its answer 4\d"):
        run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prompts_that_are_cut_are_said_wherever_a_run_speaks(tmp_path: Path) -> None:
    values = json.loads(config_of(tmp_path, "train", LONG))
    values["model"]["cut_prompts"] = True
    said: list[str] = []
    out = run(json.dumps(values), tmp_path / "out", say=said.append)
    sentence = "1 of 8 training texts were cut and lost their beginning (model.cut_prompts), 1 of them in 'two'"
    notes = json.loads((out / "results.json").read_text())["stream"]["notes"]
    report = write_report([out], tmp_path / "report.html").read_text()
    assert [sentence in text for text in (said[0], notes[0], report.replace("&#39;", "'"))] == [True] * 3


def test_texts_that_lose_their_end_are_said_in_the_run_in_explain_and_in_predict(tmp_path: Path) -> None:
    rows = [{"text": "the same beginning " * 12 + name * 9, "label": name} for name in "abcd" for _ in range(3)]
    rows.append({"text": "short", "label": "a"})
    file = write_rows(tmp_path / "rows.jsonl", rows)
    config = {
        "model": {"path": str(tiny_folder("bert"))},
        "stream": {"data": {"train": file, "test": file}, "tasks": 2, "order_seed": None},
        "method": "nmc",
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    out = run(json.dumps(config), tmp_path / "out")
    sentence = "128 tokens that fit: 12 of 13 training texts and 12 of 13 test texts were cut and lost their end"
    assert sentence in json.loads((out / "results.json").read_text())["stream"]["notes"][-1]
    explained = CliRunner().invoke(app, ["explain", str(tmp_path / "c.yaml")], env={"COLUMNS": "400"}).output
    assert "12 of 13 training texts" in " ".join(explained.split())
    (tmp_path / "asked.txt").write_text("short\n" + "long " * 100 + "\n")
    predicted = CliRunner().invoke(app, ["predict", str(out), str(tmp_path / "asked.txt")])
    assert "1 of 2 texts are longer than the 128 tokens that fit and were cut" in predicted.stderr
    assert len(predicted.stdout.splitlines()) == 2


def test_where_everything_fits_nothing_is_said(tmp_path: Path) -> None:
    out = run(config_of(tmp_path, "train", SHORT[0]), tmp_path / "out")
    assert json.loads((out / "results.json").read_text())["stream"]["notes"] == []
