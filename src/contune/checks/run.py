"""A check run: a method learns the three small tasks of a setting with a tiny frozen model, and is watched doing so."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from contune.checks.setting import SETTINGS, CheckFailed, Setting, require
from contune.checks.settings.images import SETTING as IMAGES
from contune.checks.settings.images import digit_tasks, tiny_model
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.engine.steps.loop import StepReport
from contune.method.method import Method
from contune.stream.task import Examples, Task

__all__ = [
    "SETTINGS",
    "CheckFailed",
    "CheckRun",
    "Checkpoint",
    "accuracy",
    "checked_run",
    "copied",
    "digit_tasks",
    "new_learner",
    "require",
    "same_state",
    "tiny_model",
    "trapped",
]
MakeMethod = Callable[[], Method]


def new_learner(method: Method, **changes: Any) -> Learner:
    """A learner on the tiny image model; closed-form methods keep their own number of epochs."""
    return IMAGES.learner(method, **changes)


def accuracy(learner: Learner, tasks: Sequence[Task]) -> float:
    """Share of right answers over all test examples, no task named."""
    right = [learner.answers(data) == data.labels for data in (learner.test_dataset(task) for task in tasks)]
    return float(np.concatenate(right).mean())


def copied(state: State) -> State:
    """A state that later training does not reach."""
    return State({name: tensor.clone() for name, tensor in state.tensors.items()}, json.loads(json.dumps(state.values)))


def same_state(first: State, second: State) -> str | None:
    """What differs between two states, or None where they are equal to the bit."""
    if set(first.tensors) != set(second.tensors):
        return f"the states hold different tensors: {sorted(set(first.tensors) ^ set(second.tensors))[:3]}"
    for name, tensor in first.tensors.items():
        if not torch.equal(tensor.nan_to_num(), second.tensors[name].nan_to_num()):
            return f"tensor {name} differs"
    return None if first.values == second.values else "the JSON values differ"


class Trap(list[Any]):
    """Test inputs that nobody may look at while a task is learned."""

    def __getitem__(self, place: Any) -> Any:
        raise CheckFailed("test inputs were read while a task was learned")

    def __iter__(self) -> Any:
        raise CheckFailed("test inputs were read while a task was learned")


def trapped(task: Task) -> Task:
    """The task with test data that must not be touched."""
    test = Examples(Trap(task.test.inputs), task.test.labels, task.test.ids, task.test.modality)
    return Task(task.name, task.class_names, task.train, test)


@final
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What was saved in the middle of experience `experience`."""

    experience: int
    state: State
    step: int
    memory: dict[str, Tensor]


@final
@dataclass(eq=False)
class CheckRun:
    """What was seen while a method learned the tasks of a setting.

    `scores`: mean score on each experience right after it. `dead`: trained tensors that did not move in the first one.
    `undeclared`: tensors of the model that moved though they are not trained. `bytes_kept` after each experience.
    """

    setting: Setting
    learner: Learner
    experiences: list[Sequence[Task]]
    scores: list[float] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    undeclared: list[str] = field(default_factory=list)
    bytes_kept: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    checkpoint: Checkpoint | None = None

    @property
    def trains_the_base(self) -> bool:
        """Whether the adapter trains weights of the base model, by declaration."""
        trained = {id(p) for p in self.learner.method.adapter.trained().values()}
        return any(id(p) in trained for p in self.learner.backbone.base_parameters().values())


def checked_run(make: MakeMethod, setting: Setting = IMAGES) -> CheckRun:
    """Let a method learn three tasks (or all three at once, where it is joint), watching."""
    learner = setting.learner(make())
    tasks = [trapped(task) for task in setting.tasks()]
    trial = CheckRun(setting, learner, [tasks] if learner.method.joint else [[task] for task in tasks])
    for number, experience in enumerate(trial.experiences):
        watch_experience(trial, number, experience)
        learned = setting.tasks() if learner.method.joint else setting.tasks()[number : number + 1]
        trial.scores.append(setting.score(learner, learned))
        trial.bytes_kept.append(learner.stored_bytes())
    return trial


def watch_experience(trial: CheckRun, number: int, experience: Sequence[Task]) -> None:
    """Learn one experience; note what moved, and save in the middle of the second (or only) one."""
    learner = trial.learner
    place = min(1, len(trial.experiences) - 1)
    boundary = copied(learner.state()) if number == place else None

    def after_step(report: StepReport) -> None:
        trial.losses.append(report.loss)
        if number == place and report.step == max(1, report.steps // 2):
            memory = {name: tensor.clone() for name, tensor in report.memory().items()}
            trial.checkpoint = Checkpoint(number, copied(learner.state()), report.step, memory)

    context = learner.begin(experience)
    trained = context.model.trained()
    before = {name: p.detach().clone() for name, p in trained.items()}
    own = {id(p) for p in trained.values()}
    frozen = {name: p for name, p in learner.backbone.model.named_parameters() if id(p) not in own}
    still = {name: p.detach().clone() for name, p in frozen.items()}
    learner.fit(context, after_step)
    if number == 0:
        after = context.model.trained()
        trial.dead += [name for name, value in before.items() if name in after and torch.equal(value, after[name])]
    trial.undeclared += [name for name, value in still.items() if not torch.equal(value, frozen[name])]
    learner.end(context)
    if number == place and trial.checkpoint is None and boundary is not None:
        trial.checkpoint = Checkpoint(number, boundary, 0, {})
