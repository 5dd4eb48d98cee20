"""Which classes compete in the loss of a recipe, and the warm-up of LwF."""

import pytest
import torch

from contune.checks.run import SETTINGS, digit_tasks, new_learner, tiny_model
from contune.contract.data import TASK
from contune.engine.learner import Learner
from contune.errors import ConfigError
from contune.method.catalog import build_method
from contune.rule.mask.new_rows_first import NewRowsFirst

OWN = ["ewc", "finetune", "l2", "lora", "lwf", "mas", "o-lora"]
SEEN = ["der++", "er", "refresh"]


def old_bias_gradient(name: str, options: dict[str, str]) -> float:
    """How strongly the objective's loss of the second task pulls at the biases of the first task's classes."""
    learner = new_learner(build_method(name, options))
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    data = context.task.data
    batch = context.passes.batch([(data, torch.arange(8).numpy())], segments={TASK: slice(0, 8)}, counts={TASK: 8})
    loss = context.model.objective.losses(context.model, batch, context.model.forward(batch).logits).mean()
    gradient = torch.autograd.grad(loss, context.model.trained()["head.bias"])[0]
    return float(gradient[:2].abs().max())


@pytest.mark.parametrize("name", OWN)
def test_old_classes_do_not_compete_by_default(name: str) -> None:
    assert old_bias_gradient(name, {}) == 0.0
    assert old_bias_gradient(name, {"loss_over": "seen"}) > 1e-3


@pytest.mark.parametrize("name", SEEN)
def test_old_classes_compete_by_default_where_they_are_replayed(name: str) -> None:
    assert old_bias_gradient(name, {}) > 1e-3
    assert old_bias_gradient(name, {"loss_over": "own-task"}) == 0.0


@pytest.mark.parametrize(("share", "still"), [(0.4, 4), (0.0, 0)])
def test_in_the_warm_up_new_rows_alone_move_and_then_everything(share: float, still: int) -> None:
    settings = {**SETTINGS, "epochs": 2, "batches": 5, "lr": 1e-2}
    learner = Learner(tiny_model(), build_method("lwf", {"warmup": share, "weight": 5.0}), train=settings)
    learner.learn(digit_tasks()[0])
    context = learner.begin(digit_tasks()[1])
    trained = context.model.trained()
    last = {name: value.detach().clone() for name, value in trained.items()}
    rows = []

    def watch(report: object) -> None:
        others = [
            not torch.equal(
                value[:2] if name.startswith("head.") else value,
                last[name][:2] if name.startswith("head.") else last[name],
            )
            for name, value in trained.items()
        ]
        rows.append((any(others), not torch.equal(trained["head.weight"][2:], last["head.weight"][2:])))
        last.update({name: value.detach().clone() for name, value in trained.items()})

    learner.fit(context, watch)
    assert [moved for moved, _ in rows] == [False] * still + [True] * (10 - still)
    assert all(new for _, new in rows)


def test_in_the_first_task_there_is_no_warm_up() -> None:
    learner = Learner(tiny_model(), build_method("lwf", {"warmup": 1.0}), train=SETTINGS)
    context = learner.begin(digit_tasks()[0])
    before = {name: value.detach().clone() for name, value in context.model.trained().items()}
    learner.fit(context, lambda report: None)
    assert any(not torch.equal(before[n], v) for n, v in context.model.trained().items() if n.startswith("adapter."))


def test_a_share_is_a_share() -> None:
    with pytest.raises(ConfigError, match=r"share is 1\.5; give a number from 0 to 1"):
        NewRowsFirst(share=1.5)
