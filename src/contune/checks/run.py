"""A method's trial: it learns three small tasks of real digits with a tiny frozen model, and is watched doing so."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from contune.contract.state import State
from contune.engine.learner import Learner
from contune.engine.loop import StepReport
from contune.method.method import Method
from contune.stream.build import load_stream
from contune.stream.config import StreamConfig
from contune.stream.task import Examples, Task

MakeMethod = Callable[[], Method]
SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 16, "batches": None, "lr": 5e-3, "schedule": "constant"}


class CheckFailed(Exception):
    """A check found that something does not hold; the message says what."""


def require(holds: bool, problem: str) -> None:
    """Fail with a sentence."""
    if not holds:
        raise CheckFailed(problem)


@cache
def tiny_folder() -> "tempfile.TemporaryDirectory[str]":
    """Where this process keeps the tiny model; gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="contune-tiny-model-")


@cache
def tiny_model() -> str:
    """The folder of a tiny random image transformer, made once per process."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    return random_vit(Path(tiny_folder().name), image_size=16, patch_size=4, initializer_range=0.2, **sizes)


def random_vit(folder: Path, *, image_size: int, **settings: Any) -> str:
    """Write an image transformer with random weights, always the same, and its preprocessor; `settings` of ViTConfig."""
    from transformers import ViTConfig, ViTModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTModel(ViTConfig(image_size=image_size, **settings), add_pooling_layer=False).save_pretrained(folder)
    logging.enable_progress_bar()
    size = {"height": image_size, "width": image_size}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "do_resize": True, "resample": 3}
    values = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    means = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **values, **means}))
    return str(folder)


@cache
def digit_tasks() -> tuple[Task, ...]:
    """Three tasks of two digits, 24 training examples a class."""
    stream = load_stream(StreamConfig(data="digits", tasks=5, per_class=24))
    return tuple(Task(t.name, t.class_names, t.train, t.test.take(range(30))) for t in stream.tasks[:3])


def new_learner(method: Method, **changes: Any) -> Learner:
    """A learner on the tiny model; closed-form methods keep their own number of epochs."""
    settings = SETTINGS if method.train.get("epochs", 1) else {**SETTINGS, "epochs": 0}
    return Learner(tiny_model(), method, train=settings, device="cpu", **changes)


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
    """What was seen while a method learned the digits.

    `scores`: accuracy on each experience right after it. `dead`: trained tensors that did not move in the first experience.
    `undeclared`: tensors of the model that moved though they are not trained. `bytes_kept` after each experience.
    """

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


def checked_run(make: MakeMethod) -> CheckRun:
    """Let a method learn three tasks (or all three at once, where it is joint), watching."""
    learner = new_learner(make())
    tasks = [trapped(task) for task in digit_tasks()]
    trial = CheckRun(learner, [tasks] if learner.method.joint else [[task] for task in tasks])
    for number, experience in enumerate(trial.experiences):
        watch_experience(trial, number, experience)
        learned = digit_tasks() if learner.method.joint else digit_tasks()[number : number + 1]
        trial.scores.append(accuracy(learner, learned))
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
