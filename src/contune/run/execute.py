"""Carry out a configuration: the loop over tasks, with everything written down.

for task in stream:
    begin, fit, end      (engine)
    evaluate             every seen task once, read-only: one row of the matrix
    commit               predictions, results, adapter, checkpoint
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from contune._files import atomic_path, write_json
from contune.backbone.precision import emulated
from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.contract.objective import Measure
from contune.contract.processes import Processes
from contune.contract.state import State
from contune.engine.cache import MemoryCache
from contune.engine.learner import Learner
from contune.engine.loop import StepReport
from contune.engine.observer import Observer
from contune.engine.retention import NAMES, made_retention_set, retention
from contune.errors import ConfigError, ContuneError, RunDirectoryError
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.metric.summary import summary
from contune.run.config import RunConfig, explain
from contune.run.folder.directory import RunDirectory
from contune.run.folder.events import EventFile
from contune.run.folder.predictions import Matrix, filled, matrices, prediction_table
from contune.run.folder.run_cache import RunCache
from contune.stream.task import Stream, Task


class Interrupted(ContuneError):
    """The user stopped the run; it can go on."""

    exit_code = 130


def make_method(config: RunConfig) -> Method:
    """The method a configuration names or composes."""
    method = {"name": config.method} if isinstance(config.method, str) else dict(config.method or {})
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
        return Learner(
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
    shared = shared or RunCache()
    stream = shared.stream(config.stream, base)
    learner = make_learner(config, stream, processes, observer, shared.memory_cache)
    resolved = resolved_config(config, learner, base)
    directory = RunDirectory(out)
    if processes.main:
        directory = RunDirectory.create(out, resolved)
    processes.wait()
    _Execution(config, stream, learner, directory, observer).go(say)
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
    values = yaml.safe_load((out / "config.yaml").read_text())
    base = Path(values.pop("base", "."))
    config = RunConfig.model_validate(values)
    shared = shared or RunCache()
    stream = shared.stream(config.stream, base)
    learner = make_learner(config, stream, processes, observer, shared.memory_cache)
    execution = _Execution(config, stream, learner, directory, observer)
    execution.go(say)
    return out


def resolved_config(config: RunConfig, learner: Learner, base: Path) -> str:
    """Every key with the value that is used, as YAML."""
    values = config.model_dump(mode="json", exclude={"methods", "sweep"})
    values["train"] = learner.settings.model_dump(mode="json")
    values["base"] = str(base)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


@final
class _Execution:
    """One process's pass through a run."""

    def __init__(
        self, config: RunConfig, stream: Stream, learner: Learner, directory: RunDirectory, observer: Observer
    ) -> None:
        self.config, self.stream, self.learner, self.directory, self.observer = (
            config,
            stream,
            learner,
            directory,
            observer,
        )
        self.main = learner.processes.main
        self.experiences: list[Sequence[Task]] = (
            [stream.tasks] if learner.method.joint else [[task] for task in stream.tasks]
        )
        self.columns = learner.objective.table_schema()
        self.rows = self.columns.empty_table()
        self.measured = self._measured(self.rows)
        self.tests: dict[int, Dataset] = {}
        # Before anything is restored: the untouched model is what they are compared with.
        self.retention_sets = [made_retention_set(learner, task) for task in stream.retention_sets]
        self.retention = {
            retention_set.name: {name: [retention_set.values[name]] for name in NAMES}
            for retention_set in self.retention_sets
        }
        self.diagnostics: list[dict[str, dict[str, float]]] = []
        self.events: EventFile | None = None
        self.stop = threading.Event()
        self.saved_at = time.monotonic()

    def go(self, say: Callable[[str], None]) -> None:
        """Run from where the directory stands to the end."""
        if self.main and self.learner.backbone.precision == "bf16" and emulated(self.learner.backbone.device):
            say("this processor has no bf16 instructions: bf16 is slower than float32 here (train.precision: fp32)")
        with self._owned(), self._interruptible():
            experience, done, memory, context = self._restore(say)
            while experience < len(self.experiences):
                context = self._learn(experience, context, done, memory)
                done, memory, context = 0, {}, None
                experience += 1
                self._commit(experience)
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

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C finishes the step and saves; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(_number: int, _frame: Any) -> None:
            if self.stop.is_set():
                raise KeyboardInterrupt
            self.stop.set()

        before = signal.signal(signal.SIGINT, on_signal)
        try:
            yield
        except KeyboardInterrupt as error:
            raise self._interrupted() from error
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"stopped; nothing is lost. Go on with: contune resume {self.directory.folder}")

    def _restore(self, say: Callable[[str], None]) -> tuple[int, int, Mapping[str, Any], Context | None]:
        found = self.directory.newest()
        offset = int(found[1]["events"]) if found else 0
        if self.main:
            self.events = EventFile(self.directory.folder / "events.jsonl", offset)
        if found is None:
            return 0, 0, {}, None
        state, position, warnings = found
        for warning in warnings:
            say(warning)
        experience, step = int(position["task"]), int(position["step"])
        if position["stream"] != self.stream.content_hash():
            raise ConfigError(
                f"the data of {self.directory.folder} has changed since the run began; restore it, or start a new run"
            )
        context = self.learner.load_state(state, self.experiences[experience] if step else ())
        self.learner.ledger.load(position["ledger"])
        path = self.directory.folder / "predictions.parquet"
        if path.exists() and experience:
            table = pq.read_table(path, schema=self.columns)
            self.rows = table.filter(pc.less(table["after_task"], self._matrix_row(experience)))
            self.measured = self._measured(self.rows)
            self._restore_measured(experience)
        memory = {
            name.removeprefix("optimizer/"): t for name, t in state.tensors.items() if name.startswith("optimizer/")
        }
        return experience, step, memory, context if step else None

    def _restore_measured(self, experiences: int) -> None:
        """What was found after the tasks that are done; the untouched model's values are measured anew."""
        path = self.directory.folder / "results.json"
        kept = json.loads(path.read_text()) if path.is_file() else {}
        if self.retention and "retention" not in kept:
            raise RunDirectoryError(
                f"{path} is missing, which holds what the retention sets measured; restore it, or run again"
            )
        self.diagnostics = kept.get("diagnostics", [{}] * experiences)[:experiences]
        for retention_set, values in self.retention.items():
            for name, found in values.items():
                found += kept["retention"][retention_set][name][1 : experiences + 1]

    def _matrix_row(self, experiences: int) -> int:
        return len(self.stream.tasks) if self.learner.method.joint else experiences

    def _learn(self, experience: int, context: Context | None, done: int, memory: Mapping[str, Any]) -> Context:
        tasks = self.experiences[experience]
        if context is None:
            context = self.learner.begin(tasks)
        self.observer.task_begins(
            context.task, len(self.experiences), self.learner.steps(context), len(context.task.data)
        )
        if not done:  # a run that goes on inside the task has said so already
            self._event("task", task=experience, name=context.task.name, steps=self.learner.steps(context))
        self.saved_at = time.monotonic()
        self.learner.fit(context, lambda report: self._after_step(experience, report), done=done, memory=memory)
        if self.main:
            self.learner.method.adapter.export(self.directory.folder / "adapters" / f"{experience + 1:03d}")
        self.learner.end(context)
        self._evaluate(experience, context)
        return context

    def _after_step(self, experience: int, report: StepReport) -> None:
        if report.step % 10 == 0 or report.step == report.steps:
            self._event("loss", task=experience, epoch=report.epoch, step=report.step, loss=round(report.loss, 6))
        settings = self.learner.settings
        due = time.monotonic() - self.saved_at >= settings.checkpoint_seconds
        due = due or (settings.checkpoint_steps is not None and report.step % settings.checkpoint_steps == 0)
        if self.stop.is_set() or due:
            self._save(experience, report.step, report.memory())
        if self.stop.is_set():
            raise self._interrupted()

    def _save(self, experience: int, step: int, memory: Mapping[str, Any]) -> None:
        if self.main and self.events is not None:
            state = self.learner.state()
            whole = State({**state.tensors, **{f"optimizer/{n}": t for n, t in memory.items()}}, state.values)
            ledger = self.learner.ledger.values()
            place = {"task": experience, "step": step, "events": self.events.offset(), "ledger": ledger}
            self.directory.save(whole, {**place, "stream": self.stream.content_hash()})
            self.observer.saved(experience, step)
        self.saved_at = time.monotonic()

    def _evaluate(self, experience: int, context: Context) -> None:
        row = self._matrix_row(experience + 1) - 1
        seen = self.stream.tasks[: self.learner.learned]
        tables = []
        with self.learner.ledger.phase("evaluate"):
            for index, task in enumerate(seen):
                if index not in self.tests:
                    self.tests[index] = self.learner.test_dataset(task, index)
                judged = self.learner.judge_task(index, self.tests[index])
                tables.append(prediction_table(row, index, task, judged, self.learner.objective))
            self.diagnostics.append(self.learner.method.diagnostics())
            for retention_set in self.retention_sets:
                for name, value in retention(self.learner, retention_set).items():
                    self.retention[retention_set.name][name].append(value)
        new = pa.concat_tables(tables)
        self.rows, self.measured = pa.concat_tables([self.rows, new]), filled(self.measured, self._measured(new))
        accuracies = [value for value in self._main_matrix[row] if value is not None]
        self._event("accuracy", task=row, accuracies=accuracies)
        self.observer.evaluated(context.task, accuracies)

    def _measured(self, rows: pa.Table) -> dict[str, Matrix]:
        classes = [task.class_names for task in self.stream.tasks]
        return matrices(rows, classes, self.learner.objective.measures)

    @property
    def _main_matrix(self) -> Matrix:
        return self.measured[self.learner.objective.measures[0].name]

    def _commit(self, experience: int) -> None:
        if self.main:
            with atomic_path(self.directory.folder / "predictions.parquet") as temporary:
                pq.write_table(self.rows, temporary)
        self._results(finished=False)
        self._save(experience, 0, {})
        if self.stop.is_set() and experience < len(self.experiences):
            raise self._interrupted()

    def _results(self, *, finished: bool) -> None:
        if self.main:
            write_json(self.directory.folder / "results.json", self._summary(finished))

    def _summary(self, finished: bool) -> dict[str, Any]:
        learner, tasks = self.learner, self.stream.tasks
        rows = self._matrix_row(learner.learned if not learner.method.joint else 1)
        done, (main, *others) = self._main_matrix[:rows], learner.objective.measures
        sizes = [len(task.test) for task in tasks]
        ledger = learner.ledger.values()
        seconds = ledger["seconds"]
        method = self.config.method if isinstance(self.config.method, dict) else {"name": self.config.method}
        return {
            "format": 1,
            "finished": finished,
            "method": self.config.label(),
            "method_config": method,
            "stream": {
                "name": self.stream.name,
                "kind": self.stream.kind,
                "objective": learner.objective.name,
                "tasks": len(tasks),
                "task_names": [task.name for task in tasks],
                "classes_per_task": [len(task.class_names) for task in tasks],
                "train_examples": [len(task.train) for task in tasks],
                "test_examples": sizes,
                "modality": self.stream.modality,
                "order_seed": self.stream.order_seed,
                "notes": list(self.stream.notes),
                "hash": self.stream.content_hash(),
            },
            "accuracy_matrix": done,
            "measure": described(main),
            **({"retention": self.retention} if self.retention else {}),
            **({"diagnostics": self.diagnostics} if any(self.diagnostics) else {}),
            **(
                {"measures": [{**described(one), "matrix": self.measured[one.name][:rows]} for one in others]}
                if others
                else {}
            ),
            "metrics": summary(done, sizes[: len(done[0])] if done else []),
            "cost": {
                "trainable_parameters": learner.trainable_parameters,
                "total_parameters": sum(p.numel() for p in learner.backbone.base_parameters().values()),
                "stored_bytes": learner.stored_bytes(),
                "train_seconds": sum(seconds.get(phase, 0.0) for phase in ("begin", "train", "fit", "end")),
                "eval_seconds": seconds.get("evaluate", 0.0),
                **ledger,
            },
            "model": {
                "path": learner.backbone.config.path,
                "sha256": learner.base_hash,
                # Reads every weight, so it is asked once.
                **({"base_unchanged": learner.base_unchanged()} if finished else {}),
                "feature": learner.backbone.feature,
                "precision": learner.backbone.precision,
            },
            "seeds": {"train": learner.settings.seed, "order": self.stream.order_seed},
            "versions": {name: version(name) for name in ("contune", "torch", "transformers", "peft", "numpy")},
        }

    def _event(self, event: str, **values: Any) -> None:
        if self.events is not None:
            self.events.write(event, **values)


def described(measure: Measure) -> dict[str, Any]:
    """What a reader of results needs to know of a measure."""
    return {
        "name": measure.name,
        "title": measure.title,
        "meaning": measure.meaning,
        "higher_is_better": measure.higher_is_better,
        "share": measure.share,
    }
