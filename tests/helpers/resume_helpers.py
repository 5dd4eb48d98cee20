"""Stopping in the middle of a task and going on from what was kept there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from contune.checks.run import copied, same_state
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.engine.steps.loop import StepReport
from contune.stream.task import Task


@final
@dataclass(frozen=True)
class Halfway:
    """What a checkpoint after `done` steps of a task holds."""

    task: Task
    done: int
    state: State
    memory: dict[str, Tensor]


def learn_keeping(learner: Learner, task: Task, step: int = 2) -> Halfway:
    """Learn the whole task; gives what was there after `step` of its steps."""
    context, kept = learner.begin(task), []

    def keep(report: StepReport) -> None:
        if report.step == step:
            memory = {name: value.clone() for name, value in report.memory().items()}
            kept.append(Halfway(task, step, copied(learner.state()), memory))

    learner.fit(context, keep)
    learner.end(context)
    return kept[0]


def go_on(again: Learner, halfway: Halfway) -> None:
    """A new learner takes up what was kept and learns the rest of the task."""
    context = again.load_state(halfway.state, [halfway.task])
    assert context is not None
    again.fit(context, lambda report: None, done=halfway.done, memory=halfway.memory)
    again.end(context)


def difference_after_a_stop(learner: Learner, again: Learner, tasks: Sequence[Task], step: int = 2) -> str | None:
    """Where a learner that was stopped in the second of three tasks ends otherwise than one that was not, or None."""
    first, second, third = tasks
    learner.learn(first)
    halfway = learn_keeping(learner, second, step)
    learner.learn(third)
    go_on(again, halfway)
    again.learn(third)
    return same_state(learner.state(), again.state())
