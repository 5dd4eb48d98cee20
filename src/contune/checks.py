"""The common checks of a method: what must hold for every one, tried on real digits with a tiny frozen model."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from contune.contract.state import State
from contune.engine.learner import Learner
from contune.engine.loop import StepReport
from contune.method.method import Method
from contune.stream.build import load_stream
from contune.stream.config import StreamConfig
from contune.stream.task import Examples, Task

MakeMethod = Callable[[], Method]
SETTINGS = {"epochs": 3, "batch_size": 16, "lr": 5e-3, "schedule": "constant"}


class CheckFailed(Exception):
    """A check found that something does not hold; the message says what."""


@cache
def tiny_model() -> str:
    """The folder of a tiny random image transformer, made once per process."""
    from transformers import ViTConfig, ViTModel

    folder = Path(tempfile.mkdtemp(prefix="contune-check-"))
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "do_resize": True, "resample": 3}
    values = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    means = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **values, **means}))
    return str(folder)


@cache
def digit_tasks() -> tuple[Task, ...]:
    """Three tasks of two digits, 24 training examples a class."""
    stream = load_stream(StreamConfig(data="digits", tasks=5, per_class=24))
    return tuple(small(task) for task in stream.tasks[:3])


def small(task: Task) -> Task:
    """A task with its first 30 test examples."""
    return Task(task.name, task.class_names, task.train, task.test.take(range(30)))


def new_learner(method: Method) -> Learner:
    """A learner on the tiny model; closed-form methods keep their own number of epochs."""
    changes = SETTINGS if method.train.get("epochs", 1) else {**SETTINGS, "epochs": 0}
    return Learner(tiny_model(), method, train=changes, device="cpu")


def learn_all(learner: Learner, tasks: Sequence[Task]) -> None:
    """Learn the tasks as the method wants them."""
    if learner.method.joint:
        learner.learn(tasks)
        return
    for task in tasks:
        learner.learn(task)


def accuracy(learner: Learner, tasks: Sequence[Task]) -> float:
    """Share of right answers over all test examples, no task named."""
    right = [learner.answers(data) == data.labels for data in (learner.test_dataset(task) for task in tasks)]
    return float(np.concatenate(right).mean())


def same_state(first: State, second: State) -> str | None:
    """What differs between two states, or None where they are equal to the bit."""
    if set(first.tensors) != set(second.tensors):
        return f"the states hold different tensors: {sorted(set(first.tensors) ^ set(second.tensors))[:3]}"
    for name, tensor in first.tensors.items():
        if not torch.equal(tensor.nan_to_num(), second.tensors[name].nan_to_num()):
            return f"tensor {name} differs"
    return None if first.values == second.values else "the JSON values differ"


def require(holds: bool, problem: str) -> None:
    """Fail with a sentence."""
    if not holds:
        raise CheckFailed(problem)


def check_learns(make: MakeMethod) -> None:
    """Right after a task the method answers it well above chance."""
    learner, tasks = new_learner(make()), digit_tasks()
    lessons: Sequence[Task | Sequence[Task]] = [tasks] if learner.method.joint else tasks
    scores = []
    for lesson in lessons:
        learner.learn(lesson)
        scores.append(accuracy(learner, [lesson] if isinstance(lesson, Task) else lesson))
    chance = 1 / len(learner.class_names)
    reached = float(np.mean(scores))
    require(reached > chance + 0.1, f"accuracy on the task just learned is {reached:.2f}, chance {chance:.2f}")


def check_base_unchanged(make: MakeMethod) -> None:
    """The base weights keep every bit, and no frozen tensor holds a gradient; methods that train the base are exempt."""
    learner = new_learner(make())
    learn_all(learner, digit_tasks()[:2])
    trained = {id(p) for p in learner.method.adapter.trained().values()}
    base = learner.backbone.base_parameters()
    if any(id(parameter) in trained for parameter in base.values()):
        return
    require(learner.base_unchanged(), "the base weights have changed")
    held = [name for name, parameter in base.items() if parameter.grad is not None]
    require(not held, f"frozen tensor {held[:1]} holds a gradient")


def check_no_dead_tensor(make: MakeMethod) -> None:
    """Every trained tensor has moved after the first task."""
    learner, task = new_learner(make()), digit_tasks()[0]
    lesson = digit_tasks() if learner.method.joint else task
    context = learner.begin(lesson)
    before = {name: p.detach().clone() for name, p in context.trained().items()}
    learner.fit(context, lambda report: None)
    dead = [name for name, value in before.items() if torch.equal(value, context.trained()[name])]
    require(not dead, f"tensor {dead[:1]} is trained but has not moved")


def check_exact_resume(make: MakeMethod) -> None:
    """Stopped inside the second task and loaded into a fresh process, it ends with the same bits."""
    tasks = digit_tasks()[:2]
    whole = new_learner(make())
    lessons: list[Sequence[Task]] = [tasks] if whole.method.joint else [[task] for task in tasks]
    saved: list[tuple[State, int, dict[str, torch.Tensor]]] = []

    def keep(report: StepReport) -> None:
        if report.step == max(1, report.steps // 2):
            saved.append((copied(whole.state()), report.step, {n: t.clone() for n, t in report.memory().items()}))

    for lesson in lessons:
        saved.clear()
        boundary = copied(whole.state())
        context = whole.begin(lesson)
        whole.fit(context, keep)
        whole.end(context)
    state, done, memory = saved[0] if saved else (boundary, 0, {})
    again = new_learner(make())
    loaded = again.load_state(state, lessons[-1] if done else ())
    context = loaded if done and loaded is not None else again.begin(lessons[-1])
    again.fit(context, lambda report: None, done=done, memory=memory)
    again.end(context)
    problem = same_state(whole.state(), again.state())
    require(problem is None, f"after resuming at step {done}: {problem}")


def copied(state: State) -> State:
    """A state that later training does not reach."""
    return State({name: tensor.clone() for name, tensor in state.tensors.items()}, json.loads(json.dumps(state.values)))


def check_rows_independent(make: MakeMethod) -> None:
    """An answer does not depend on the other rows of its batch."""
    learner, tasks = new_learner(make()), digit_tasks()[:2]
    learn_all(learner, tasks)
    images = [image for image in tasks[0].test.inputs if isinstance(image, np.ndarray)][:6]
    together = learner.predict(images)
    alone = [learner.predict([image])[0] for image in images]
    require(together == alone, f"together the answers are {together}, one by one {alone}")


def check_no_peeking(make: MakeMethod) -> None:
    """What is learned does not depend on the test data."""
    states = []
    for test in (False, True):
        learner = new_learner(make())
        tasks = [blank_test(task) if test else task for task in digit_tasks()[:2]]
        learn_all(learner, tasks)
        states.append(learner.state())
    problem = same_state(*states)
    require(problem is None, f"with other test data {problem}")


def blank_test(task: Task) -> Task:
    """The task with black test images."""
    blank = [np.zeros_like(image) for image in task.test.inputs if isinstance(image, np.ndarray)]
    return Task(task.name, task.class_names, task.train, Examples(blank, task.test.labels, task.test.ids, "image"))


CHECKS: dict[str, Callable[[MakeMethod], None]] = {
    "learns": check_learns,
    "leaves the base unchanged": check_base_unchanged,
    "has no dead tensor": check_no_dead_tensor,
    "resumes exactly": check_exact_resume,
    "answers each row on its own": check_rows_independent,
    "never looks at test data": check_no_peeking,
}


def run_checks(name: str) -> Iterator[tuple[str, str | None]]:
    """Every check's title and what is wrong, or None."""
    from contune.method.catalog import build_method

    build_method(name, {})
    for title, check in CHECKS.items():
        try:
            check(lambda: build_method(name, {}))
        except CheckFailed as problem:
            yield title, str(problem)
        else:
            yield title, None
