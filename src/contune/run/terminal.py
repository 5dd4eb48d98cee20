"""What a person sees in the terminal while a run goes on: one line a task, with a bar, speed and time left."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from contune.contract.context import TaskView
from contune.engine.observer import Observer

TITLES = {"base": "queries", "features": "features", "layer": "frozen layers"}


@final
class TerminalObserver(Observer):
    """Bars on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, what: str) -> None:
        self.console = console
        self.what = what
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar: TaskID | None = None
        self._steps = 0
        self._tasks = 0
        self._started = self._rate_from = time.monotonic()
        self._examples = 0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw while the block runs."""
        with self._progress:
            yield

    def task_begins(self, task: TaskView, tasks: int, steps: int, examples: int) -> None:
        self._tasks, self._steps, self._examples = tasks, steps, 0
        self._started = self._rate_from = time.monotonic()
        if steps:
            title = f"{self.what}  {task.name} of {tasks}"
            self._bar = self._progress.add_task(title, total=steps, note="")

    def step(self, epoch: int, step: int, loss: float, examples: int) -> None:
        self._examples += examples
        rate = self._examples / max(time.monotonic() - self._rate_from, 1e-6)
        if self._bar is not None:
            note = f"epoch {epoch + 1}  loss {loss:.3f}  {rate:,.0f} examples/s"
            self._progress.update(self._bar, completed=step, note=note)
            if step == self._steps:
                self._progress.remove_task(self._bar)
                self._bar = None

    @contextmanager
    def watch(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        name = next((shown for start, shown in TITLES.items() if title.startswith(start)), title)
        bar = self._progress.add_task(f"{self.what}  {name}", total=total, note="")
        try:
            yield lambda count: self._progress.advance(bar, count)
        finally:
            self._progress.remove_task(bar)

    def note(self, sentence: str) -> None:
        self.console.print(f"note: {sentence}", markup=False, highlight=False)

    def evaluated(self, task: TaskView, accuracies: list[float]) -> None:
        seconds = time.monotonic() - self._started
        now = sum(accuracies) / len(accuracies)
        first = f", first task {accuracies[0]:.0%}" if len(accuracies) > 1 else ""
        self.console.print(
            f"{self.what}  learned [bold]{task.name}[/bold] in {seconds:.0f} s: this task {accuracies[-1]:.0%}{first}, "
            f"mean of {len(accuracies)} seen [bold]{now:.0%}[/bold]",
            highlight=False,
        )


def stderr_console(quiet: bool) -> Console:
    """Where progress goes, so that standard output stays clean for results."""
    return Console(file=sys.stderr, quiet=quiet)
