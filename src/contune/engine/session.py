"""The loop over a stream: learn, evaluate, commit, task by task or chunk by chunk. It has no disk of its own.

for task in stream:                      for chunk in stream:
    begin, fit, end      (learner)           observe              (learner)
    evaluate             every seen task     evaluate             every so many examples
    commit               (recorder)          commit               (recorder)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from contune.contract.context import Context
from contune.engine.learner import Learner
from contune.engine.measuring.measured import Measured
from contune.engine.measuring.predictions import Matrix
from contune.engine.steps.loop import StepReport
from contune.engine.steps.online import refuse_waiting
from contune.metric.summary import summary
from contune.stream.events import Arrive, Ask, events_in_chunks
from contune.stream.online import Online
from contune.stream.task import Stream, Task


class Recorder:
    """Told of everything in a session, in order. This one is silent; a run directory is another."""

    def begins(self, number: int, context: Context, *, resumed: bool) -> None:
        """Task `number` (from 0) begins, or goes on after a stop."""

    def stepped(self, number: int, report: StepReport) -> None:
        """A gradient step was taken."""

    def learned(self, number: int) -> None:
        """A task's steps are over; its adapter is still in training form."""

    def evaluated(self, row: int, values: list[float], context: Context | None) -> None:
        """A row of the matrix is there."""

    def committed(self, number: int) -> None:
        """Everything of `number` tasks is done."""

    def observed(self, events: int) -> None:
        """So many events of a stream of chunks are done."""


@final
@dataclass(frozen=True, eq=False)
class Start:
    """Where a session goes on: the task or event to come; inside a task the steps done and the optimizer's memory."""

    number: int = 0
    done: int = 0
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    context: Context | None = None


@final
@dataclass(frozen=True, eq=False)
class Results:
    """What came out: the matrix of the main measure (rows: after learning a task; columns: measured on a task), the metrics
    that follow from it, and accuracy along the way where the stream had no tasks."""

    measure: str
    matrix: Matrix
    metrics: Mapping[str, float | None]
    anytime: Sequence[tuple[int, float]] = ()

    def __repr__(self) -> str:
        rows = ["  ".join("   -" if value is None else f"{100 * value:4.1f}" for value in row) for row in self.matrix]
        last, forgetting = self.metrics.get("last_accuracy"), self.metrics.get("forgetting")
        said = [
            f"{name} {100 * value:.1f}"
            for name, value in (("last", last), ("forgetting", forgetting))
            if value is not None
        ]
        return "\n".join([f"{self.measure} in percent: {', '.join(said)}", *rows])


@final
class Session:
    """A learner meets a stream.

    `online` makes it a stream of chunks without tasks. `recorder` is told of everything and may stop the session by an
    exception; what was done by then can go on from a `Start`.
    """

    def __init__(
        self, learner: Learner, stream: Stream, *, online: Online | None = None, recorder: Recorder | None = None
    ) -> None:
        self.learner, self.stream, self.online = learner, stream, online
        self.recorder = recorder or Recorder()
        if online is not None:
            refuse_waiting(learner.method, learner.settings)
        joint = learner.method.joint and online is None
        self.experiences: list[Sequence[Task]] = [stream.tasks] if joint else [[task] for task in stream.tasks]
        self.measured = Measured(learner, stream)

    def run(self, start: Start | None = None) -> Results:
        """Learn, evaluate and commit to the end."""
        start = start or Start()
        if self.online is not None:
            self._run_chunks(self.online, start.number)
            return self.results()
        for number in range(start.number, len(self.experiences)):
            here = start if number == start.number else Start(number)
            context = here.context or self.learner.begin(self.experiences[number])
            self.recorder.begins(number, context, resumed=bool(here.done))
            self._learn(number, context, here)
            self.recorder.committed(number + 1)
        return self.results()

    def _learn(self, number: int, context: Context, start: Start) -> None:
        def after_step(report: StepReport) -> None:
            self.recorder.stepped(number, report)

        self.learner.fit(context, after_step, done=start.done, memory=start.memory)
        self.recorder.learned(number)
        self.learner.end(context)
        row = self.matrix_row(number + 1) - 1
        with self.learner.ledger.phase("evaluate"):
            values = self.measured.task_ends(row, self.learner.learned)
        self.recorder.evaluated(row, values, context)

    def _run_chunks(self, online: Online, done: int) -> None:
        came = 0
        seed = self.learner.settings.seed
        for number, event in enumerate(events_in_chunks(self.stream, online.chunk, online.evaluate_every, seed)):
            arrived = len(event.examples) if isinstance(event, Arrive) else 0
            came += arrived
            if number < done:
                continue
            if isinstance(event, Arrive):
                self.learner.observe(event, updates_per_example=online.updates_per_example)
            elif isinstance(event, Ask):
                self._answer(event, came)
            self.recorder.observed(number + 1)

    def _answer(self, ask: Ask, came: int) -> None:
        with self.learner.ledger.phase("evaluate"):
            if ask.regular:
                self.measured.point(came, ask.tasks)
            if ask.ends:
                values = self.measured.task_ends(ask.tasks - 1, ask.tasks)
                self.recorder.evaluated(ask.tasks - 1, values, None)

    def matrix_row(self, experiences: int) -> int:
        """How many rows the matrix has after so many tasks; joint training has the last one alone."""
        return len(self.stream.tasks) if len(self.experiences) < len(self.stream.tasks) else experiences

    def rows_done(self) -> int:
        """Rows of the matrix that are filled, or that come before one that is."""
        return max(
            (row + 1 for row, values in enumerate(self.measured.main) if any(v is not None for v in values)), default=0
        )

    def metrics(self) -> dict[str, float | None]:
        """All that follows from the matrix so far, and the area under accuracy along the way (A_auc)."""
        done = self.measured.main[: self.rows_done()]
        sizes = [len(task.test) for task in self.stream.tasks]
        found = dict(summary(done, sizes)) if done else {}
        if self.measured.anytime:
            found["anytime_accuracy"] = anytime(self.measured.anytime)
        return found

    def results(self) -> Results:
        """What came out so far."""
        main = self.learner.objective.measures[0]
        done = self.measured.main[: self.rows_done()]
        return Results(main.title, done, self.metrics(), tuple(self.measured.anytime))


def anytime(points: Sequence[tuple[int, float]]) -> float:
    """Area under accuracy over the stream: the mean over evaluations at equal distances (CLIB, arXiv 2110.10031, A_auc).

    >>> anytime([(10, 0.5), (20, 1.0)])
    0.75
    """
    return sum(value for _, value in points) / len(points)
