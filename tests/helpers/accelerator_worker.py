"""Started by test_far_device.py: methods learn on the device that is not there; what goes wrong is written as JSON lines."""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import fake_accelerator

fake_accelerator.install()  # before any model is made

import numpy as np  # noqa: E402
import torch  # noqa: E402
from resume_helpers import Halfway, go_on, learn_keeping  # noqa: E402
from run_helpers import config_text, run  # noqa: E402
from word_tasks import tiny_folder  # noqa: E402

from contune.adapter.lora.peft_adapter import lora  # noqa: E402
from contune.checks.run import digit_tasks, tiny_model  # noqa: E402
from contune.contract.parts import Rule  # noqa: E402
from contune.contract.state import State  # noqa: E402
from contune.engine.learner import Learner  # noqa: E402
from contune.errors import CombinationError  # noqa: E402
from contune.head.linear import Linear  # noqa: E402
from contune.method.catalog import build_method  # noqa: E402
from contune.method.method import Method  # noqa: E402
from contune.run.export import export_run  # noqa: E402
from contune.run.predict import load_learner  # noqa: E402
from contune.stream.conversation import Conversation, Message, language_examples  # noqa: E402
from contune.stream.task import Task  # noqa: E402

Make = Callable[[], Method]
TRAIN = {"epochs": 1, "batch_size": 8, "batches": None, "lr": 2e-3}
DEVICES = ("cpu", fake_accelerator.NAME)
ALIKE = 0.9  # the device adds in another order, and optimisers carry that on


class LeftBehind(Rule):
    """A rule with a fault that a processor does not show: its memory stays where it was made."""

    name = "left-behind"

    def loss(self, context, batch, outputs):
        del context, batch
        return (outputs.features * torch.ones(outputs.features.shape[1])).mean() * 0


def small(task: Task) -> Task:
    """Six training and ten test images of each of its two digits."""
    return Task(task.name, task.class_names, task.train.take(range(0, 48, 4)), task.test.take(range(20)))


def conversations(name: str, odd: str) -> Task:
    """Questions about a few words, to be answered with yes and no, or with other words."""
    asked = [
        Conversation((Message("user", f"Is {word} {name}"),), (odd if at % 2 else "no",))
        for at, word in enumerate(("sun", "dog", "cat", "sea"))
    ]
    return Task(name, ("answer",), language_examples(asked, range(4)), language_examples(asked, range(4)))


def as_read(halfway: Halfway) -> Halfway:
    """What a checkpoint holds when it has been written and read."""
    tensors = {name: tensor.detach().cpu() for name, tensor in halfway.state.tensors.items()}
    memory = {name: tensor.cpu() for name, tensor in halfway.memory.items()}
    return replace(halfway, state=State(tensors, halfway.state.values), memory=memory)


def images(make: Make, device: str) -> list[Any]:
    """Answers after two tasks; a learner that takes up a checkpoint gives the second's, stopped in its middle."""
    tasks = [small(task) for task in digit_tasks()[:2]]

    def learner() -> Learner:
        method = make()
        train = TRAIN if method.train.get("epochs", 1) else {**TRAIN, "epochs": 0}
        return Learner(tiny_model(), method, train=train, device=device)

    one = learner()
    if one.method.joint:
        one.learn(tasks)
        return answered(one, tasks)
    one.learn(tasks[0])
    if not one.settings.epochs or one.method.adapt == "first-task":  # no steps to be stopped between
        one.learn(tasks[1])
        return answered(one, tasks)
    halfway, again = learn_keeping(one, tasks[1], step=1), learner()
    go_on(again, as_read(halfway))
    return answered(one, tasks) + answered(again, tasks)


def answered(learner: Learner, tasks: Sequence[Task]) -> list[int]:
    """The answers to all test examples."""
    return [answer for task in tasks for answer in learner.answers(learner.test_dataset(task)).tolist()]


def language(make: Make, device: str) -> list[Any]:
    """What is written after two tasks."""
    one = Learner(
        str(tiny_folder("llama-writer")), make(), objective="write", train={**TRAIN, "batch_size": 4}, device=device
    )
    tasks = [conversations("big", "yes"), conversations("red", "blue")]
    for experience in [tasks] if one.method.joint else tasks:
        one.learn(experience)
    return list(one.predict(["Is sun big", "Is dog red"]))


def whole_run(make: Make, device: str) -> list[Any]:
    """What a run directory predicts, after it was written, read and exported in both forms."""
    del make
    with TemporaryDirectory() as folder, patch("contune.run.execute.choose_device", lambda name: device):
        out = run(config_text("er", epochs=1), Path(folder) / "run")
        with patch("contune.run.predict.choose_device", lambda name: device):
            learner = load_learner(out)
            export_run(out, Path(folder) / "peft", "peft")
            export_run(out, Path(folder) / "merged", "merged")
    return list(learner.predict(list(digit_tasks()[0].test.inputs[:20])))


def problem(learned: Callable[[Make, str], list[Any]], make: Make) -> str | None:
    """What goes wrong on the device, or how far the answers are from the processor's."""
    try:
        here, there = (np.array(learned(make, device)) for device in DEVICES)
    except CombinationError:
        return None  # not for this kind of stream
    except (RuntimeError, TypeError, ValueError) as failure:
        place = traceback.extract_tb(failure.__traceback__)
        ours = [f"{Path(at.filename).name}:{at.lineno}" for at in place if "contune" in at.filename]
        return f"{str(failure)[:200]} ({', '.join(ours[-3:])})"
    same = float((here == there).mean())
    return None if same >= ALIKE else f"{same:.0%} of the answers are the processor's"


def main(names: list[str]) -> None:
    """Try these recipes, `left-behind`, which must not pass, and `run`, a run with all that comes after it."""
    for name in names:

        def make(name: str = name) -> Method:
            return Method(lora(), Linear(), (LeftBehind(),)) if name == "left-behind" else build_method(name, {})

        for learned in (whole_run,) if name == "run" else (images, language):
            found = problem(learned, make)
            print(json.dumps({"recipe": name, "stream": learned.__name__, "problem": found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
