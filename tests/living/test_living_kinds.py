"""Where a living model begins, and what it learns beside single classes."""

from dataclasses import replace
from pathlib import Path

import pytest
from run_helpers import config_text, run

from contune.checks.run import same_state
from contune.checks.setting import settings
from contune.checks.settings.texts import text_model, text_tasks
from contune.errors import ConfigError
from contune.living.data.sides import input_hashes
from contune.living.model import LivingModel
from contune.run.predict import load_learner
from contune.stream.build import load_stream
from contune.stream.config import StreamConfig
from contune.stream.task import Task


def test_it_begins_with_what_a_run_knows(tmp_path: Path) -> None:
    out = run(config_text("nmc"), tmp_path / "run")
    model = LivingModel.create(tmp_path / "model", run=out, device="cpu")
    assert same_state(model.learner().state(), load_learner(out).state()) is None
    task = load_stream(StreamConfig(data="digits", tasks=5, per_class=5)).tasks[0]
    made = model.update(task, name="more")
    assert made.number == 1
    assert made.outcome is not None  # both versions were asked
    assert model.verify() == []


def halves(task: Task) -> Task:
    """The task with every second of its inputs to learn and the others to test."""
    first = list({name: at for at, name in enumerate(input_hashes(task.train))}.values())
    return replace(task, train=task.train.take(first[::2]), test=task.train.take(first[1::2]))


@pytest.mark.parametrize(("objective", "recipe"), [("multi-label", "er"), ("regress", "lora"), ("tag", "lora")])
def test_other_answers_are_learned_and_measured(objective: str, recipe: str, tmp_path: Path) -> None:
    setting = next(one for one in settings().values() if one.objective == objective)
    train = {**setting.train, "epochs": 2}
    own = {"objective": objective, "kind": setting.kinds[0], "train": train, "device": "cpu"}
    model = LivingModel.create(tmp_path / "model", setting.model(), recipe, **own)
    for number, task in enumerate(halves(task) for task in setting.tasks()[:2]):
        made = model.update(task, name=f"update {number}", gate=False)
        model.promote(made.number, reason="all are taken")
    assert model.gate(1).compared[0].n == len(halves(setting.tasks()[0]).test)
    rows = model.history()
    assert [row.accuracy is not None for row in rows] == [False, True, True]
    assert model.verify() == []


def test_numbers_come_as_rows(tmp_path: Path) -> None:
    setting = settings()["regress"]
    own = {"objective": "regress", "train": {"epochs": 1}, "device": "cpu"}
    model = LivingModel.create(tmp_path / "model", text_model(), "lora", **own)
    rows = [{"text": f"number {at}", "label": at / 10} for at in range(20)]
    made = model.update(rows, name="first", gate=False)
    version = model.folder.version(made.id)
    assert version["found"]["learned"] + version["found"]["tested"] == 20
    assert version["found"]["tested"] > 0
    assert setting.objective == "regress"


def test_tasks_are_named_where_streams_name_them(tmp_path: Path) -> None:
    own = {"kind": "task-incremental", "train": {"epochs": 0}, "device": "cpu"}
    model = LivingModel.create(tmp_path / "model", text_model(), "nmc", **own)
    for task in text_tasks()[:2]:
        made = model.update(task, name=task.name)
        assert made.outcome is not None
        model.promote(made.number, reason="all are taken")
    text = text_tasks()[1].test.inputs[0]
    assert model.predict([text], task=0)[0].label in text_tasks()[0].class_names
    assert model.predict([text], task=1)[0].label in text_tasks()[1].class_names
    with pytest.raises(ConfigError, match="name one of 0 to 1"):
        model.predict([text])
