"""Carry out a configuration: a session over the stream, with everything written down in a run directory."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import pyarrow.parquet as pq
import yaml

from contune._files import atomic_path, write_json
from contune.backbone.precision import emulated
from contune.contract.context import Context
from contune.contract.processes import Processes
from contune.contract.state import State
from contune.engine.kept.cache import MemoryCache
from contune.engine.learner import Learner
from contune.engine.observer import Observer
from contune.engine.session import Recorder, Session, Start
from contune.engine.steps.loop import StepReport
from contune.engine.steps.online import refuse_waiting
from contune.errors import ConfigError, ContuneError, RunDirectoryError
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.run.config import RunConfig, explain, located, read_resolved
from contune.run.folder.directory import RunDirectory
from contune.run.folder.events import EventFile
from contune.run.folder.run_cache import RunCache
from contune.run.folder.unchanged import require_unchanged
from contune.run.lengths import cut_notes
from contune.run.results import results_of
from contune.stream.task import Stream


class Interrupted(ContuneError):
    """The user stopped the run; it can go on."""

    exit_code = 130


def make_method(config: RunConfig) -> Method:
    """The method a configuration names or composes."""
    return method_of(config.method or {})


def method_of(given: str | Mapping[str, Any]) -> Method:
    """A recipe by its name, a recipe with options under `name`, or parts."""
    method = {"name": given} if isinstance(given, str) else dict(given)
    if "name" in method:
        name = str(method.pop("name"))
        return build_method(name, method)
    return compose(method)


def make_learner(
    config: RunConfig, stream: Stream, processes: Processes, observer: Observer, memory_cache: MemoryCache | None = None
) -> Learner:
    """A learner for the stream; whatever does not fit is refused here, before any compute."""
    from pydantic import ValidationError

    from contune.contract.settings import TrainSettings

    method = make_method(config)
    try:
        learner = Learner(
            config.model,
            method,
            objective=stream.objective,
            kind=stream.kind,
            train=config.train,
            cache=config.cache,
            device=choose_device(config.device),
            processes=processes,
            observer=observer,
            memory_cache=memory_cache,
        )
    except ValidationError as error:
        raise ConfigError(f"train: {explain(error, TrainSettings)}") from error
    if config.stream.online is not None:
        refuse_waiting(learner.method, learner.settings)
    return learner


def choose_device(name: str) -> str:
    """The device to compute on; `auto` is a CUDA device where there is one. One that is not there is an error.

    `auto` is never mps, which has no float64: methods that sum in it stop there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(kind, 1)
    if int(number or 0) >= there:
        raise ConfigError(f"device is {name!r}, which is not here (torch counts {there} of {kind}); set device: auto")
    return name


def start_run(
    config: RunConfig,
    base: Path,
    out: Path,
    *,
    processes: Processes,
    observer: Observer,
    say: Callable[[str], None] = lambda _text: None,
    shared: RunCache | None = None,
) -> Path:
    """Make a new run directory and run in it until the end; `shared` is what the runs before it have left."""
    config = located(config, base)
    stream, learner, notes = _prepared(config, base, processes, observer, shared or RunCache())
    resolved = resolved_config(config, learner, base)
    directory = RunDirectory(out)
    if processes.main:
        directory = RunDirectory.create(out, resolved)
    processes.wait()
    _Execution(config, stream, learner, directory, observer, notes).go(say)
    return out


def resume_run(
    out: Path,
    *,
    processes: Processes,
    observer: Observer,
    say: Callable[[str], None],
    shared: RunCache | None = None,
) -> Path:
    """Go on with a run from its newest whole checkpoint; a finished run is left as it is."""
    directory = RunDirectory.open(out)
    config, base = read_resolved(out)
    stream, learner, notes = _prepared(config, base, processes, observer, shared or RunCache())
    _Execution(config, stream, learner, directory, observer, notes).go(say)
    return out


def _prepared(
    config: RunConfig, base: Path, processes: Processes, observer: Observer, shared: RunCache
) -> tuple[Stream, Learner, list[str]]:
    """The stream, a learner for it, and what the user should know of how they fit."""
    stream = shared.stream(config.stream, base)
    learner = make_learner(config, stream, processes, observer, shared.memory_cache)
    return stream, learner, [*stream.notes, *cut_notes(learner.backbone, stream)]


def resolved_values(config: RunConfig, learner: Learner) -> dict[str, Any]:
    """Every key with the value that is used."""
    values = config.model_dump(mode="json", exclude={"methods", "sweep"})
    return {**values, "train": learner.settings.model_dump(mode="json")}


def resolved_config(config: RunConfig, learner: Learner, base: Path) -> str:
    """Every key with the value that is used, as YAML, and the folder that relative paths start from."""
    values = {**resolved_values(config, learner), "base": str(base.resolve())}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


@final
class _Execution(Recorder):
    """One process's pass through a run: what a session does, written down in a run directory."""

    def __init__(
        self,
        config: RunConfig,
        stream: Stream,
        learner: Learner,
        directory: RunDirectory,
        observer: Observer,
        notes: Sequence[str],
    ) -> None:
        self.config, self.directory, self.observer = config, directory, observer
        self.learner, self.stream, self.notes = learner, stream, list(notes)
        self.main = learner.processes.main
        self.session = Session(learner, stream, online=config.stream.online, recorder=self)
        self.events: EventFile | None = None
        self.stop = threading.Event()
        self.saved_at = time.monotonic()

    def go(self, say: Callable[[str], None]) -> None:
        """Run from where the directory stands to the end."""
        if self.main and self.learner.backbone.precision == "bf16" and emulated(self.learner.backbone.device):
            say("this processor has no bf16 instructions: bf16 is slower than float32 here (train.precision: fp32)")
        if self.main:
            for note in self.notes:
                say(f"note: {note}")
        with self._owned(), interruptible(self.stop, self._interrupted):
            self.session.run(self._restore(say))
            self._write_predictions()
            self._results(finished=True)

    @contextmanager
    def _owned(self) -> Iterator[None]:
        if not self.main:
            yield
            return
        with self.directory.locked():
            yield
            if self.events is not None:
                self.events.close()

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"stopped; nothing is lost. Go on with: contune resume {self.directory.folder}")

    def _restore(self, say: Callable[[str], None]) -> Start:
        found = self.directory.newest()
        offset = int(found[1]["events"]) if found else 0
        if self.main:
            self.events = EventFile(self.directory.folder / "events.jsonl", offset)
        if found is None:
            return Start()
        state, position, warnings = found
        for warning in warnings:
            say(warning)
        number, step = int(position["task"]), int(position["step"])
        if "config" in position:
            require_unchanged(position["config"], resolved_values(self.config, self.learner), self.directory.folder)
        if position["stream"] != self.stream.content_hash():
            raise ConfigError(
                f"the data of {self.directory.folder} has changed since the run began; restore it, or start a new run"
            )
        context = self.learner.load_state(state, self.session.experiences[number] if step else ())
        self.learner.ledger.load(position["ledger"])
        self._restore_measured(position, number)
        optimizer = state.inner("optimizer").tensors
        return Start(number, step, optimizer, context if step else None)

    def _restore_measured(self, position: Mapping[str, Any], number: int) -> None:
        """What was measured before the checkpoint."""
        path = self.directory.folder / "predictions.parquet"
        rows = position.get("rows", self.session.matrix_row(number))
        self.session.measured.restore_points(position.get("anytime", []))
        if not (path.exists() and rows):
            return
        results = self.directory.folder / "results.json"
        kept = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
        if self.stream.retention_sets and "retention" not in kept:
            raise RunDirectoryError(
                f"{results} is missing, which holds what the retention sets measured; restore it, or run again"
            )
        table = pq.read_table(path, schema=self.learner.objective.table_schema())
        self.session.measured.restore(table, rows, kept, rows if self.session.online else number)

    def begins(self, number: int, context: Context, *, resumed: bool) -> None:
        steps = self.learner.steps(context)
        self.observer.task_begins(context.task, len(self.session.experiences), steps, len(context.task.data))
        if not resumed:  # a run that goes on inside the task has said so already
            self._event("task", task=number, name=context.task.name, steps=steps)
        self.saved_at = time.monotonic()

    def stepped(self, number: int, report: StepReport) -> None:
        if report.step % 10 == 0 or report.step == report.steps:
            self._event("loss", task=number, epoch=report.epoch, step=report.step, loss=round(report.loss, 6))
        if self._due(report.step):
            self._save(number, report.step, report.memory())
        if self.stop.is_set():
            raise self._interrupted()

    def _due(self, step: int) -> bool:
        settings = self.learner.settings
        late = time.monotonic() - self.saved_at >= settings.checkpoint_seconds
        return late or self.stop.is_set() or bool(settings.checkpoint_steps and step % settings.checkpoint_steps == 0)

    def learned(self, number: int) -> None:
        if self.main:
            self.learner.method.adapter.export(self.directory.folder / "adapters" / f"{number + 1:03d}")

    def evaluated(self, row: int, values: list[float], context: Context | None) -> None:
        self._event("accuracy", task=row, accuracies=values)
        if context is not None:
            self.observer.evaluated(context.task, values)

    def committed(self, number: int) -> None:
        self._write_predictions()
        self._results(finished=False)
        self._save(number, 0, {})
        if self.stop.is_set() and number < len(self.session.experiences):
            raise self._interrupted()

    def observed(self, events: int) -> None:
        if not self._due(events):
            return
        self._write_predictions()
        self._results(finished=False)
        measured = self.session.measured
        self._save(events, 0, {}, rows=self.session.rows_done(), anytime=[list(point) for point in measured.anytime])
        if self.stop.is_set():
            raise self._interrupted()

    def _save(self, number: int, step: int, memory: Mapping[str, Any], **more: Any) -> None:
        if self.main and self.events is not None:
            state = self.learner.state()
            whole = State({**state.tensors, **{f"optimizer/{n}": t for n, t in memory.items()}}, state.values)
            ledger = self.learner.ledger.values()
            place = {"task": number, "step": step, "events": self.events.offset(), "ledger": ledger, **more}
            config = resolved_values(self.config, self.learner)
            self.directory.save(whole, {**place, "stream": self.stream.content_hash(), "config": config})
            self.observer.saved(number, step)
        self.saved_at = time.monotonic()

    def _write_predictions(self) -> None:
        if self.main:
            with atomic_path(self.directory.folder / "predictions.parquet") as temporary:
                pq.write_table(self.session.measured.rows, temporary)

    def _results(self, *, finished: bool) -> None:
        if self.main:
            results = results_of(self.session, self.config, self.notes, finished=finished)
            write_json(self.directory.folder / "results.json", results)

    def _event(self, event: str, **values: Any) -> None:
        if self.events is not None:
            self.events.write(event, **values)


@contextmanager
def interruptible(stop: threading.Event, error: Callable[[], Interrupted]) -> Iterator[None]:
    """Ctrl-C sets `stop`, so that the step is finished and saved; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(_number: int, _frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    except KeyboardInterrupt as cause:
        raise error() from cause
    finally:
        signal.signal(signal.SIGINT, before)
