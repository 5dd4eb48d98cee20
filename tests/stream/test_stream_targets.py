"""Streams of several labels, tags and numbers: what a file says, how it is cut, and every bad row by its place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from word_tasks import tiny_folder

import contune
from contune.errors import ConfigError, DataError
from contune.stream import StreamConfig, load_stream
from contune.stream.task import Stream, Task

LABELS = [["sport"], ["sport", "money"], ["art"], [], ["money", "art"], ["news"]]
WORDS = [
    (["Ann", "lives", "in", "Rome"], ["B-PER", "O", "O", "B-LOC"]),
    (["no", "one"], ["O", "O"]),
    (["Bo"], ["B-PER"]),
]


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def label_rows(times: int = 1) -> list[dict[str, Any]]:
    return [{"text": f"text {at} {n}", "labels": names} for n in range(times) for at, names in enumerate(LABELS)]


def stream_of(tmp_path: Path, rows: list[dict[str, Any]], objective: str, **keys: Any) -> Stream:
    file = lines(tmp_path / "rows.jsonl", rows)
    return load_stream(StreamConfig(data={"train": file, "test": file}, objective=objective, **keys))  # type: ignore[arg-type]


def answers(task: Task) -> list[list[Any]]:
    targets = task.train.targets
    assert targets is not None
    if targets.values.dtype.kind == "f":
        return [targets.of(row).tolist() for row in range(len(targets))]
    return [[task.class_names[at] for at in targets.of(row)] for row in range(len(targets))]


def test_labels_are_cut_into_tasks_and_a_row_comes_with_every_task_of_which_it_has_one(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, label_rows(), "multi-label", tasks=2, order_seed=None)
    assert [task.class_names for task in stream.tasks] == [("art", "money"), ("news", "sport")]
    assert answers(stream.tasks[0]) == [["money"], ["art"], ["money", "art"]]
    assert answers(stream.tasks[1]) == [["sport"], ["sport"], ["news"]]
    assert [task.train.ids.tolist() for task in stream.tasks] == [[1, 2, 4], [0, 1, 5]]
    assert stream.objective == "multi-label"


def test_labels_between_bars_in_a_csv_are_those_of_a_list(tmp_path: Path) -> None:
    wanted = stream_of(tmp_path, label_rows(), "multi-label", tasks=2)
    table = "text,labels\n" + "".join(f"text {at} 0,{'|'.join(names)}\n" for at, names in enumerate(LABELS))
    (tmp_path / "rows.csv").write_text(table)
    data = {"train": str(tmp_path / "rows.csv"), "test": str(tmp_path / "rows.csv")}
    found = load_stream(StreamConfig(data=data, objective="multi-label", tasks=2))  # type: ignore[arg-type]
    assert [task.content_hash() for task in found.tasks] == [task.content_hash() for task in wanted.tasks]
    python = contune.Stream.of(train=label_rows(), test=label_rows(), objective="multi-label", tasks=2)
    assert [task.content_hash() for task in python.tasks] == [task.content_hash() for task in wanted.tasks]


def test_tags_are_cut_by_type_and_what_a_task_did_not_annotate_is_outside(tmp_path: Path) -> None:
    rows = [{"tokens": words, "ner_tags": tags} for words, tags in WORDS]
    stream = stream_of(tmp_path, rows, "tag", tasks=2, order_seed=None)
    assert [task.class_names for task in stream.tasks] == [("O", "B-LOC"), ("O", "B-PER")]
    assert answers(stream.tasks[0]) == [["O", "O", "O", "B-LOC"]]
    assert answers(stream.tasks[1]) == [["B-PER", "O", "O", "O"], ["B-PER"]]
    assert stream.tasks[0].train.inputs[0] == ["Ann", "lives", "in", "Rome"]
    assert stream.modality == "words"


def test_numbers_come_by_domain(tmp_path: Path) -> None:
    rows = [{"text": f"flat {at}", "value": at * 1.5, "city": "abc"[at % 3]} for at in range(9)]
    stream = stream_of(tmp_path, rows, "regress", by="city", order_seed=None)
    assert [task.name for task in stream.tasks] == ["a", "b", "c"]
    assert answers(stream.tasks[1]) == [[1.5], [6.0], [10.5]]
    with pytest.raises(ValueError, match="give by"):
        stream_of(tmp_path, rows, "regress")
    with pytest.raises(ConfigError, match="numbers come from domain to domain"):
        stream_of(tmp_path, rows, "regress", kind="task-incremental", tasks=1)


@pytest.mark.parametrize(
    ("objective", "row", "reason"),
    [
        ("multi-label", {"text": "a", "labels": 3.5}, "are '3.5' and no list of names"),
        ("multi-label", {"text": "a", "labels": ["x", ""]}, "no list of names"),
        ("tag", {"tokens": ["a", "b"], "tags": "O O"}, "no list of tags"),
        ("tag", {"tokens": ["a", "b"], "tags": ["O"]}, "the row has 2 words and 1 tags"),
        ("tag", {"tokens": "a b", "tags": ["O", "O"]}, "no list of strings"),
        ("regress", {"text": "a", "value": "much", "city": "a"}, "no finite number"),
        ("regress", {"text": "a", "value": None, "city": "a"}, "no finite number"),
        ("regress", {"text": "a", "value": float("inf"), "city": "a"}, "no finite number"),
    ],
)
def test_a_bad_row_names_file_and_line(objective: str, row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    good = {
        "multi-label": {"text": "b", "labels": ["x"]},
        "tag": {"tokens": ["a"], "tags": ["B-X"]},
        "regress": {"text": "b", "value": 1, "city": "a"},
    }[objective]
    keys = {"by": "city"} if objective == "regress" else {"tasks": 1}
    with pytest.raises(DataError, match=rf"rows.jsonl, line 2: .*{reason}"):
        stream_of(tmp_path, [good, row], objective, **keys)


def test_names_that_only_tests_have_are_told_and_not_asked(tmp_path: Path) -> None:
    train = lines(tmp_path / "train.jsonl", label_rows())
    test = lines(tmp_path / "test.jsonl", [*label_rows(), {"text": "z", "labels": ["art", "weather"]}])
    stream = load_stream(StreamConfig(data={"train": train, "test": test}, objective="multi-label", tasks=2))  # type: ignore[arg-type]
    assert any("no training example has 'weather'" in note for note in stream.notes)
    assert "weather" not in stream.class_names


@pytest.mark.parametrize("objective", ["multi-label", "tag", "regress"])
def test_a_run_from_a_file_to_answers(objective: str, tmp_path: Path) -> None:
    from contune.cli import app

    words = {"sport": "aaaa", "money": "bbbb", "art": "cccc", "news": "dddd"}
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for at in range(48):
        own = [name for name in words if generator.random() < 0.5] or ["art"]
        text = " ".join(words[name] for name in own)
        tags = [f"B-{name}" for name in own]
        rows.append({"text": text, "labels": own, "value": float(len(own)), "city": "ab"[at % 2], "tags": tags})
    if objective == "tag":
        rows = [{"tokens": row["text"].split(), "tags": row["tags"]} for row in rows]
    file = lines(tmp_path / "rows.jsonl", rows)
    cut = "by: city" if objective == "regress" else "tasks: 2"
    label = {"multi-label": "labels", "tag": "tags", "regress": "value"}[objective]
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {{path: {tiny_folder('bert')}}}\n"
        f"stream: {{data: {{train: {file}, test: {file}, label: {label}}}, objective: {objective}, {cut}}}\n"
        "method: lora\ntrain: {epochs: 2, batch_size: 8, lr: 0.01}\n"
    )
    out = tmp_path / "out"
    runner = CliRunner()
    done = runner.invoke(app, ["run", str(config), "--out", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    results = json.loads((out / "results.json").read_text())
    assert results["stream"]["objective"] == objective
    assert len(results["accuracy_matrix"]) == 2
    assert (
        results["measure"]["name"] == {"multi-label": "micro_f1", "tag": "entity_f1", "regress": "explained"}[objective]
    )
    assert (out / "report.html").stat().st_size > 10_000
    explained = runner.invoke(app, ["explain", str(config)])
    assert f"objective: {objective}" in explained.output
    new = tmp_path / ("new.jsonl" if objective == "tag" else "new.txt")
    new.write_text('{"tokens": ["aaaa", "cccc"]}\n' if objective == "tag" else "aaaa cccc\n")
    answered = runner.invoke(app, ["predict", str(out), str(new)])
    assert answered.exit_code == 0, answered.output
    prediction = json.loads(answered.output.splitlines()[0])["prediction"]
    assert objective != "tag" or len(prediction.split()) == 2
