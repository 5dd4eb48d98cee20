"""Retained ability: measured against the untouched model, in every run, and whole again after a resume."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from language_tasks import TRAIN, WRITER, config_of, experience
from run_helpers import resume, run, same_run
from torch.nn import functional

from contune.engine.learner import Learner
from contune.engine.measuring.retention import divergences, made_retention_set, retention
from contune.method.catalog import compose
from contune.stream.conversation import Conversation, language_examples
from contune.stream.task import Task


def story() -> Task:
    pieces = [Conversation((), (text,), (), "tokens") for text in ("once upon a time", "there was a moon", "and a sea")]
    examples = language_examples(pieces, range(3))
    return Task("story", ("answer",), examples, examples)


def test_nothing_changes_where_nothing_is_trained() -> None:
    learner = Learner(WRITER, "linear-probe", objective="write", train=TRAIN)
    retention_set = made_retention_set(learner, story())
    learner.learn(experience("big"))
    found = retention(learner, retention_set)
    assert found["changed_tokens"] == 0
    assert found["divergence"] == pytest.approx(0, abs=1e-3)  # of log-probabilities in half precision
    assert found["loss"] == pytest.approx(retention_set.values["loss"])


def test_training_moves_away_from_the_untouched_model() -> None:
    learner = Learner(WRITER, "lora", objective="write", train={**TRAIN, "epochs": 20, "lr": 2e-2})
    retention_set = made_retention_set(learner, story())
    learner.learn(experience("big"))
    found = retention(learner, retention_set)
    assert found["divergence"] is not None
    assert found["divergence"] > 0.05
    assert found["changed_tokens"] is not None
    assert found["changed_tokens"] > 0


def test_a_planted_full_change_is_seen_though_the_adapter_cannot_be_put_aside() -> None:
    learner = Learner(WRITER, "finetune", objective="write", train=TRAIN)
    retention_set = made_retention_set(learner, story())
    with torch.no_grad():
        for parameter in learner.backbone.base_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    learner.learn(experience("big"))
    found = retention(learner, retention_set)
    assert found["divergence"] is not None
    assert found["divergence"] > 0.01


def test_divergence_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(5, 7, generator=generator), torch.randn(5, 7, generator=generator)
    log_p, log_q = functional.log_softmax(first, 1), functional.log_softmax(second, 1)
    expected = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(divergences(log_p, second), expected)


def probed(tmp_path: Path) -> str:
    (tmp_path / "story.txt").write_text("Once upon a time there was a moon over the sea.")
    config = json.loads(config_of(tmp_path, "lora"))
    config["stream"]["language"] = {"retention_sets": {"story": str(tmp_path / "story.txt")}, "piece": 50}
    return json.dumps(config)


def test_a_run_measures_probes_before_and_after_every_task_and_a_resume_keeps_them(tmp_path: Path) -> None:
    out = run(probed(tmp_path), tmp_path / "out")
    found = json.loads((out / "results.json").read_text())["retention"]["story"]
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(found, 3)
    assert found["divergence"][0] == 0
    shutil.copytree(out, tmp_path / "cut")
    newest = sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    resume(tmp_path / "cut")
    same_run(out, tmp_path / "cut")


def test_rows_that_go_through_different_modules_are_compared_with_themselves() -> None:
    method = compose({"adapter": "bottleneck-per-task", "head": "linear", "router": "centroids"})
    learner = Learner(WRITER, method, objective="write", train={**TRAIN, "lr": 1e-12})
    asked = [*experience("big").test.inputs, *experience("a house").test.inputs]
    mixed = [asked[row] for row in (0, 8, 1, 9, 2, 10, 11, 3)]
    examples = language_examples([Conversation(one.messages, (one.prompt,), (), "tokens") for one in mixed], range(8))
    retention_set = made_retention_set(learner, Task("mixed", ("answer",), examples, examples))
    learner.learn(experience("big"))
    learner.learn(experience("a house"))
    routes = learner.reading(retention_set.dataset).passes.routes(retention_set.dataset)
    assert routes.tolist() != sorted(routes.tolist()), "the modules take turns, so batches are not in the order of rows"
    found = retention(learner, retention_set)
    assert found["changed_tokens"] == 0
    assert found["divergence"] == pytest.approx(0, abs=1e-3)
