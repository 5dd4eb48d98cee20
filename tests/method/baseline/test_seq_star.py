"""SEQ*: a short warm-up, rows that never move again, and rows that are ahead of their classes."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from resume_helpers import go_on, learn_keeping
from torch import Tensor
from torch.nn import functional
from word_tasks import tiny_folder, word_tasks

from contune.checks.run import SETTINGS, accuracy, digit_tasks, same_state, tiny_model
from contune.contract.data import TASK, Selection
from contune.engine.learner import Learner
from contune.engine.steps.loop import objective_loss
from contune.errors import CombinationError, ConfigError
from contune.head.frozen_rows import FrozenRows
from contune.head.linear import Linear
from contune.method.catalog import build_method, compose
from contune.rule.align.preallocation import crowding
from contune.stream.task import Examples, Task

HARSH = {**SETTINGS, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1, "lr": 0.05}
LONG = {**SETTINGS, "epochs": 20, "lr": 0.02}
CASES = ["digits", "bert"]
EVERY = [{}, {"reserved_rows": 3}, {"reserved_rows": 3, "classifier": "linear"}]


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 3, 1))


def learner_of(case: str, train: dict[str, Any] = HARSH, kind: Any = "class-incremental", **options: Any) -> Learner:
    model = tiny_model() if case == "digits" else str(tiny_folder(case))
    return Learner(model, build_method("seq-star", options), kind=kind, train=train)


def head_of(learner: Learner) -> FrozenRows:
    head = learner.method.head
    assert isinstance(head, FrozenRows)
    return head


def rows_of(learner: Learner) -> dict[str, Tensor]:
    """The rows of all seen classes."""
    return {name: value.detach().clone() for name, value in head_of(learner)._all_rows().items()}


def base_values(learner: Learner) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in learner.backbone.base_parameters().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", EVERY, ids=str)
def test_old_rows_and_the_model_keep_every_bit(case: str, options: dict[str, Any]) -> None:
    learner, tasks = learner_of(case, **options), tasks_of(case)
    learner.learn(tasks[0])
    model = base_values(learner)
    for task in tasks[1:]:
        old = rows_of(learner)
        learner.learn(task)
        known = len(old["weight"])
        new = rows_of(learner)
        assert all(torch.equal(new[name][:known], value) for name, value in old.items())
        assert not torch.equal(new["weight"][known:], torch.zeros_like(new["weight"][known:]))
        assert same(model, base_values(learner))


def test_a_head_that_trains_all_rows_would_be_noticed() -> None:
    method = build_method("seq-star", {"classifier": "linear"})
    plain = Linear()
    learner = Learner(tiny_model(), compose({"adapter": "none", "head": "linear"}), train=HARSH)
    assert method.head.name != plain.name
    first, second, _ = digit_tasks()
    learner.learn(first)
    old = {name: value.clone() for name, value in learner.method.head.state().tensors.items()}
    learner.learn(second)
    new = learner.method.head.state().tensors
    assert not all(torch.equal(new[name][: len(value)], value) for name, value in old.items())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_the_model_learns_in_its_warm_up_alone(case: str, warmup: int) -> None:
    learner = learner_of(case, warmup_epochs=warmup)
    context = learner.begin(tasks_of(case)[0])
    values = [base_values(learner)]
    heads = [rows_of(learner)]

    def note(report: Any) -> None:
        values.append(base_values(learner))
        heads.append(rows_of(learner))

    learner.fit(context, note)
    per_epoch = (len(values) - 1) // 3
    moved = [not same(before, after) for before, after in pairwise(values)]
    assert moved == [step < warmup * per_epoch for step in range(3 * per_epoch)]
    assert all(not same(before, after) for before, after in pairwise(heads))


def test_spare_rows_start_the_new_classes() -> None:
    learner, tasks = learner_of("bert", reserved_rows=2), tasks_of("bert")
    drawn = learner.begin(tasks[0])
    ahead = head_of(learner)._ahead["weight"].detach().clone()
    learner.fit(drawn, lambda report: None)
    learner.end(drawn)
    trained = head_of(learner)._ahead["weight"].detach().clone()
    assert not torch.equal(trained, ahead)  # they learned before their classes came
    learner.begin(tasks[1])  # three classes, two of them find a row
    rows = rows_of(learner)["weight"]
    assert torch.equal(rows[2:4], trained)
    assert rows.shape[0] == 5
    assert head_of(learner)._ahead["weight"].shape[0] == 2
    fresh = torch.cat([rows[4:], head_of(learner)._ahead["weight"].detach()])
    assert len({tuple(row.tolist()) for row in torch.cat([fresh, trained])}) == 5


@pytest.mark.parametrize("reserved_rows", [1, 4])
def test_the_loss_is_cross_entropy_over_seen_and_spare(reserved_rows: int) -> None:
    learner, tasks = learner_of("bert", reserved_rows=reserved_rows, scale=5.0), tasks_of("bert")
    learner.learn(tasks[0])
    context = learner.begin(tasks[1])
    batch = context.passes.batch([(context.task.data, np.arange(8))])
    outputs = context.model.forward(batch)
    rule = learner.method.rules[0]
    added = rule.loss(context, batch, outputs)
    assert added is not None
    head = head_of(learner)
    both = torch.cat([outputs.logits, head.reserved_logits(outputs.features)], dim=1)
    assert both.shape == (8, 5 + reserved_rows)
    selections = {TASK: Selection(context.task.data, np.arange(8))}
    found = objective_loss(context, batch, outputs, selections) + added
    assert found.item() == pytest.approx(functional.cross_entropy(both, batch.labels).item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(added, head._ahead["weight"])
    assert gradient.abs().sum() > 0


def test_spare_rows_move_away_from_today() -> None:
    learner = learner_of("bert", LONG, reserved_rows=4, scale=5.0)
    task = tasks_of("bert")[0]
    context = learner.begin(task)
    features = context.passes.features(context.task.data)
    before = head_of(learner).reserved_logits(features).mean().item()
    learner.fit(context, lambda report: None)
    learner.end(context)
    after = learner.reading(context.task.data)
    assert head_of(learner).reserved_logits(after.passes.features(context.task.data)).mean().item() < before - 0.5


def test_crowding_by_hand() -> None:
    seen, reserved_rows = torch.log(torch.tensor([[1.0, 1.0]])), torch.log(torch.tensor([[2.0]]))
    assert crowding(seen, reserved_rows).item() == pytest.approx(np.log(2))
    assert crowding(seen, torch.zeros(1, 0)).item() == 0.0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [*EVERY, {"warmup_epochs": 1, "reserved_rows": 1}], ids=str)
def test_it_resumes_exactly_inside_a_task(case: str, options: dict[str, Any]) -> None:
    learner, again, other = (learner_of(case, **options) for _ in range(3))
    first, second, third = tasks_of(case)
    early = learn_keeping(learner, first)
    halfway = learn_keeping(learner, second)
    learner.learn(third)
    go_on(again, halfway)
    again.learn(third)
    assert same_state(learner.state(), again.state()) is None
    go_on(other, early)
    other.learn(second)
    other.learn(third)
    assert same_state(learner.state(), other.state()) is None


def test_classes_that_come_back_train_again() -> None:
    learner = learner_of("bert")
    first, second, _ = tasks_of("bert")
    learner.learn(first)
    learner.learn(second)
    before = rows_of(learner)
    back = Task("back", first.class_names[1:], *(kept(part, 1) for part in (first.train, first.test)))
    learner.learn(back)
    after = rows_of(learner)
    assert torch.equal(after["weight"][[0, 2, 3, 4]], before["weight"][[0, 2, 3, 4]])
    assert not torch.equal(after["weight"][1], before["weight"][1])


def kept(examples: Examples, label: int) -> Examples:
    """The examples of one class, alone."""
    some = examples.take(np.flatnonzero(examples.labels == label))
    return Examples(some.inputs, some.labels - label, some.ids, some.modality)


def test_named_tasks_crowd_nobody() -> None:
    learner = learner_of("bert", kind="task-incremental", reserved_rows=3)
    context = learner.begin(tasks_of("bert")[0])
    batch = context.passes.batch([(context.task.data, np.arange(4))])
    assert learner.method.rules[0].loss(context, batch, context.model.forward(batch)) is None


@pytest.mark.parametrize(
    "options", [{}, {"scale": 16.0}, {"scale": 16.0, "reserved_rows": 4}, {"classifier": "linear"}], ids=str
)
def test_it_learns_new_classes(options: dict[str, Any]) -> None:
    learner, found = learner_of("digits", LONG, **options), []
    for task in digit_tasks():
        learner.learn(task)
        found.append(accuracy(learner, [task]))
    assert np.mean(found) > 1 / 3


def test_later_tasks_read_kept_features() -> None:
    learner = learner_of("digits")
    learner.learn(digit_tasks()[0])
    before = learner.ledger.examples_forward
    learner.learn(digit_tasks()[1])
    assert learner.ledger.examples_forward - before <= len(digit_tasks()[1].train)
    assert learner.ledger.cache_hits >= 3 * len(digit_tasks()[1].train)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 or more rows"):
        build_method("seq-star", {"reserved_rows": -1})
    with pytest.raises(ConfigError, match="0 for an adapter that never learns"):
        build_method("seq-star", {"warmup_epochs": -1})
    with pytest.raises(CombinationError, match="set head: frozen-rows"):
        compose({"adapter": "lora", "rules": ["preallocation"]})
    with pytest.raises(CombinationError, match="answers are written"):
        Learner(str(tiny_folder("llama-writer")), "seq-star", objective="write")
