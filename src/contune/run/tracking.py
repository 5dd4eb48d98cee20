"""Losses and accuracies to an experiment tracker, through accelerate: TensorBoard, MLflow, Weights & Biases."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, final

from contune.contract.context import TaskView
from contune.engine.observer import Observer
from contune.errors import ConfigError, did_you_mean

EVERY = 10  # steps between two logged losses


@final
class TrackingObserver(Observer):
    """Passes everything on to another observer and logs it on the way."""

    def __init__(self, inner: Observer, name: str, folder: Path, label: str) -> None:
        from accelerate import Accelerator
        from accelerate.utils import LoggerType

        known = [str(kind.value) for kind in LoggerType if kind.value != "all"]
        if name not in known:
            raise ConfigError(f"tracker {name!r} is unknown; {did_you_mean(name, known)}")
        self._inner = inner
        self._accelerator: Any = Accelerator(log_with=name, project_dir=str(folder), cpu=True)
        if not self._accelerator.log_with:
            raise ConfigError(f"tracker {name!r} is not installed; install its package first")
        self._accelerator.init_trackers(label)
        self._steps = 0

    def task_begins(self, task: TaskView, tasks: int, steps: int, examples: int) -> None:
        self._inner.task_begins(task, tasks, steps, examples)

    def step(self, epoch: int, step: int, loss: float, examples: int) -> None:
        self._inner.step(epoch, step, loss, examples)
        self._steps += 1
        if self._steps % EVERY == 0:
            self._accelerator.log({"loss": loss, "epoch": epoch}, step=self._steps)

    def watch(self, title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return self._inner.watch(title, total)

    def note(self, sentence: str) -> None:
        self._inner.note(sentence)

    def evaluated(self, task: TaskView, accuracies: list[float]) -> None:
        self._inner.evaluated(task, accuracies)
        values = {"accuracy/this task": accuracies[-1], "accuracy/first task": accuracies[0]}
        mean = sum(accuracies) / len(accuracies)
        self._accelerator.log({**values, "accuracy/mean of seen": mean, "task": task.index + 1}, step=self._steps)

    def saved(self, task: int, step: int) -> None:
        self._inner.saved(task, step)

    def close(self) -> None:
        """Flush what the tracker holds."""
        self._accelerator.end_training()
