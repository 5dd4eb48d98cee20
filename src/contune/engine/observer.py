"""What the engine tells whoever watches: nothing it does depends on the answer."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from contune.contract.context import TaskView
from contune.engine.kept.cache import no_watch, warn


class Observer:
    """Watches a run. This one is silent but for warnings; a terminal, an event file or a tracker each are another."""

    def task_begins(self, task: TaskView, tasks: int, steps: int, examples: int) -> None:
        """A task begins, with so many gradient steps ahead (0: closed form) and so many training examples."""

    def step(self, epoch: int, step: int, loss: float, examples: int) -> None:
        """A gradient step was taken; `step` counts from 1 within the task."""

    def watch(self, title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A pass over `total` examples begins; the block is given a function to report how many more are done."""
        return no_watch(title, total)

    def note(self, sentence: str) -> None:
        """Something happened that the user should know, though the run goes on."""
        warn(sentence)

    def evaluated(self, task: TaskView, accuracies: list[float]) -> None:
        """All seen tasks were evaluated."""

    def saved(self, task: int, step: int) -> None:
        """A checkpoint was written."""
