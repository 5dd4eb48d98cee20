"""What a run measures is what its learner answers, and it makes every test set ready once for all its questions."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from run_helpers import config_text, run

from contune.backbone.reader.text import TextReader
from contune.checks.settings.texts import text_model, text_tasks
from contune.engine.learner import Learner
from contune.errors import ConfigError
from contune.run.config import parse_config
from contune.run.predict import load_learner
from contune.stream.build import load_stream

MODULAR = {
    "conpet-dynamic": "conpet-dynamic",
    "s-prompts": "s-prompts",
    "dualprompt": "dualprompt",
    "bottleneck-per-task": {"adapter": "bottleneck-per-task", "head": "linear", "router": "centroids"},
}


def task_incremental(method: object) -> str:
    values = yaml.safe_load(config_text(method, epochs=1))
    values["stream"]["kind"] = "task-incremental"
    values["stream"]["tasks"] = 3
    return yaml.safe_dump(values)


@pytest.mark.parametrize("method", MODULAR)
def test_a_run_asks_each_task_through_its_own_module(method: str, tmp_path: Path) -> None:
    text = task_incremental(MODULAR[method])
    out = run(text, tmp_path / "run")
    last = json.loads((out / "results.json").read_text())["accuracy_matrix"][-1]
    learner, own = load_learner(out), []
    for index, task in enumerate(load_stream(parse_config(text).stream, base=Path.cwd()).tasks):
        said = learner.predict(task.test.inputs, task=index)
        own.append(
            sum(a == task.class_names[label] for a, label in zip(said, task.test.labels, strict=True)) / len(said)
        )
    assert last == pytest.approx(own, abs=1e-12)


def test_a_test_set_of_a_stream_with_named_tasks_needs_its_place(tmp_path: Path) -> None:
    text = task_incremental("nmc")
    learner = load_learner(run(text, tmp_path / "run"))
    first = load_stream(parse_config(text).stream, base=Path.cwd()).tasks[0]
    for place in (None, 3):
        with pytest.raises(ConfigError, match="name one of 0 to 2"):
            learner.test_dataset(first, place)
    assert set(learner.test_dataset(first, 0).tasks.tolist()) == {0}


def test_every_set_of_a_run_is_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets: Counter[tuple[str, ...]] = Counter()
    own = TextReader.prepare

    def counting(self, inputs):
        sets[tuple(inputs)] += 1
        return own(self, inputs)

    monkeypatch.setattr(TextReader, "prepare", counting)
    for split in ("train", "test"):
        examples = [(task.class_names[y], x) for task in text_tasks() for x, y in pairs(getattr(task, split))]
        rows = [json.dumps({"text": text, "label": label}) for label, text in examples]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    data = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    stream = {"data": data, "tasks": 3, "order_seed": None}
    text = yaml.safe_dump({"model": {"path": text_model()}, "stream": stream, "method": "nmc"})
    tasks = load_stream(parse_config(text).stream, base=Path.cwd()).tasks
    run(text, tmp_path / "run")
    # To count what is cut before anything is trained, to be learned, and to be asked after its own task and all that follow.
    expected = {tuple(part.inputs): 1 for task in tasks for part in (task.train, task.test)}
    assert len(expected) == 6
    assert {texts: count for texts, count in sets.items() if texts in expected} == expected


def pairs(examples):
    return zip(examples.inputs, examples.labels, strict=True)


def test_learners_elsewhere_read_no_place(tmp_path: Path) -> None:
    learner = Learner(text_model(), "nmc")
    learner.learn(text_tasks()[0])
    assert set(learner.test_dataset(text_tasks()[0]).tasks.tolist()) == {0}
