"""Whole runs of every kind of stream, on images and on texts, with answers to new inputs at the end."""

import json
from pathlib import Path

import pytest
import yaml
from run_helpers import config_text, run
from tiny_models import save_tiny
from typer.testing import CliRunner

from contune.cli import app

TOPICS = {
    "fruit": ("apple", "pear", "plum", "cherry"),
    "metal": ("iron", "zinc", "copper", "nickel"),
    "animal": ("horse", "sheep", "goat", "camel"),
    "number": ("one", "two", "seven", "eleven"),
}


def write_texts(folder: Path) -> None:
    """Short sentences about four topics, in two manners of speaking."""
    for split, count in (("train", 8), ("test", 3)):
        rows = []
        for topic, words in TOPICS.items():
            for number in range(count):
                for manner, form in (("plain", "a {} {}"), ("loud", "WHAT A {} {} !!!")):
                    text = form.format(words[number % 4], f"{split} {number}")
                    rows.append(json.dumps({"text": text, "label": topic, "manner": manner}))
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


def text_config(folder: Path, method: object, **stream: object) -> str:
    save_tiny("bert", folder / "model")
    write_texts(folder)
    data = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    train = {"epochs": 8, "batch_size": 8, "lr": 0.01}
    values = {"model": {"path": str(folder / "model")}, "stream": {"data": data, **stream}, "method": method}
    return yaml.safe_dump({**values, "train": train})


def results_of(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize(
    "method", ["lora", "er", {"name": "ranpac", "form": "small"}, "l2p", "coda-prompt", "ewc", "o-lora", "lwf"]
)
def test_texts_are_learned_class_by_class(tmp_path: Path, method: object) -> None:
    out = run(text_config(tmp_path, method, tasks=2), tmp_path / "run")
    results = results_of(out)
    assert results["finished"]
    assert results["accuracy_matrix"][0][0] > 0.5


def test_a_domain_incremental_stream_keeps_its_classes(tmp_path: Path) -> None:
    config = text_config(tmp_path, "er", kind="domain-incremental", by="manner")
    out = run(config, tmp_path / "run")
    results = results_of(out)
    assert results["stream"]["classes_per_task"] == [4, 4]
    assert results["metrics"]["last_accuracy"] > 0.5
    (tmp_path / "new.txt").write_text("a horse new\nWHAT A zinc !!!\n")
    done = CliRunner().invoke(app, ["predict", str(out), str(tmp_path / "new.txt")])
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 2
    assert {answer["prediction"] for answer in answers} <= set(TOPICS)


def test_a_named_task_makes_it_easier(tmp_path: Path) -> None:
    scores = {}
    for kind in ("class-incremental", "task-incremental"):
        values = yaml.safe_load(config_text("lora", epochs=4))
        values["stream"]["kind"] = kind
        out = run(yaml.safe_dump(values), tmp_path / kind)
        scores[kind] = results_of(out)["metrics"]["last_accuracy"]
    assert scores["task-incremental"] > scores["class-incremental"] + 0.2
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "task-incremental"), str(tmp_path)])
    assert done.exit_code != 0


def test_augmentation_of_texts_is_refused(tmp_path: Path) -> None:
    values = yaml.safe_load(text_config(tmp_path, "lora", tasks=2))
    values["train"]["augment"] = True
    with pytest.raises(Exception, match="augmentation is for images"):
        run(yaml.safe_dump(values), tmp_path / "run")
