"""The learner: a frozen model, a method, and what it has learned so far."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.contract.capability import Lifetime
from contune.contract.context import Context, TaskView
from contune.contract.data import Dataset, Rows
from contune.contract.model import Model
from contune.contract.objective import Judged, Objective, Prediction
from contune.contract.parts import Rule
from contune.contract.processes import Processes
from contune.contract.settings import CacheSettings, TrainSettings
from contune.contract.state import State
from contune.engine.cache import FeatureCache, MemoryCache
from contune.engine.loop import AfterStep, StepReport, steps_of, train
from contune.engine.observer import Observer
from contune.engine.packing import refuse_packing
from contune.engine.passes import CachedPasses
from contune.errors import ConfigError, DataError
from contune.method.catalog import build_method, build_objective
from contune.method.method import Method
from contune.metric.ledger import Ledger
from contune.stream.inputs import Inputs
from contune.stream.task import Examples, Kind, Task, joined_examples


@final
class Learner:
    """Two verbs: `learn(task)` and `predict(inputs)`.

    `model` is a hub id, a folder or a `ModelConfig`; `method` the name of a recipe, with its hyper-parameters as
    keywords, or a `Method`. `memory_cache` holds results of frozen models that another learner of this process has kept.
    Raises `ConfigError` before any compute where they do not fit.
    """

    def __init__(
        self,
        model: str | Path | ModelConfig,
        method: str | Method = "lora",
        *,
        objective: str | Objective = "classify",
        kind: Kind | None = None,
        train: Mapping[str, Any] | None = None,
        cache: CacheSettings | None = None,
        device: str = "cpu",
        processes: Processes | None = None,
        observer: Observer | None = None,
        memory_cache: MemoryCache | None = None,
        **options: Any,
    ) -> None:
        given = build_method(method, options) if isinstance(method, str) else method
        self.objective = build_objective(objective) if isinstance(objective, str) else objective
        self.method = given.for_objective(self.objective)
        self.kind = kind or self.objective.kinds[0]
        if self.kind not in self.objective.kinds:
            raise ConfigError(
                f"kind is {self.kind}, but objective: {self.objective.name} learns streams of kind "
                f"{' or '.join(self.objective.kinds)}; take one of these"
            )
        self.settings = TrainSettings().with_changes({**self.method.train, **(train or {})})
        if self.settings.views is not None and not self.settings.augment:
            raise ConfigError(
                f"train.views is {self.settings.views} but train.augment is off, so that there is one view alone; "
                "set train.augment: true, or leave train.views out"
            )
        if self.settings.packing:
            refuse_packing(self.objective, self.method.adapter)
        self.processes = processes or Processes()
        self.observer = observer or Observer()
        self.ledger = Ledger()
        config = model if isinstance(model, ModelConfig) else ModelConfig(path=str(model))
        with self.ledger.phase("load"):
            self.backbone = Backbone.load(
                config, device=device, reads=self.objective.reads, precision=self.settings.precision
            )
            if self.settings.packing:
                self.backbone.require_packing()
            self.base_hash = self.backbone.base_hash()
        if self.settings.augment and not self.backbone.augmentable:
            raise ConfigError(
                "train.augment is on but the model reads text; augmentation is for images, set it to false"
            )
        self.feature_cache = FeatureCache(
            cache or CacheSettings(), self.ledger, self.processes, self.observer.watch, memory_cache
        )
        self.method.adapter.attach(self.backbone, self.settings.seed)
        self.backbone.cast_frozen(self.method.adapter.trained().values())
        self._frozen_hash = self.base_hash if self.settings.precision == "fp32" else self.backbone.base_hash()
        self.class_names: list[str] = []
        self.class_tasks: list[tuple[int, ...]] = []
        self.learned = 0
        self.trainable_parameters = 0

    def learn(self, task: Task | Sequence[Task]) -> None:
        """Learn one task, or several at once as if they were one (joint training)."""
        context = self.begin(task)
        self.fit(context, lambda report: None)
        self.end(context)

    def predict(self, inputs: Inputs, *, task: int | None = None) -> list[Prediction]:
        """The answer to every input, as text that knows its score.

        `task` names the task where the stream is task-incremental, and only there.
        """
        if not self.learned:
            raise ConfigError("the learner has not learned any task yet; call learn(task) first")
        rows = np.zeros(len(inputs), dtype=np.int64)
        examples = Examples(inputs, rows, np.arange(len(inputs)), self.backbone.modality)
        allowed = self._allowed(task)
        dataset = Dataset.of(examples, self.backbone, rows, rows + (task or 0))
        return self.objective.predict(self.reading(dataset), dataset, allowed)

    def begin(self, task: Task | Sequence[Task]) -> Context:
        """Meet a task: new classes get columns, adapter and head grow, rules look at the past while it is intact."""
        tasks = [task] if isinstance(task, Task) else list(task)
        known = len(self.class_names)
        for each in tasks:
            self._require_modality(each)
            self.class_names += [name for name in each.class_names if name not in self.class_names]
            self.class_tasks.append(self.columns(each))
        context = self.context(tasks, known)
        with self.ledger.phase("begin"):
            self.objective.begin_task(context)
            self.method.adapter.begin_task(context)
            if self.method.router is not None:
                self.method.router.begin_task(context)
            self.method.head.begin_task(context)
            for rule in self.method.rules:
                rule.begin_task(context)
        return context

    def context(self, tasks: Sequence[Task], known: int) -> Context:
        """What the parts may see while these tasks, met already, are learned."""
        index = self.learned
        datasets = []
        for offset, each in enumerate(tasks):
            labels = np.asarray(self.columns(each), dtype=np.int64)[each.train.labels]
            datasets.append(
                (self._in_columns(each.train, each), labels, np.full(len(labels), index + offset, dtype=np.int64))
            )
        dataset = datasets[0][0] if len(datasets) == 1 else joined_examples([examples for examples, _, _ in datasets])
        labels = np.concatenate([labels for _, labels, _ in datasets])
        task_rows = np.concatenate([rows for _, _, rows in datasets])
        classes = tuple(dict.fromkeys(column for each in tasks for column in self.columns(each)))
        name = tasks[0].name if len(tasks) == 1 else f"all {len(tasks)} tasks"
        seen = self._score_columns(self.class_names)
        known = self._score_columns(self.class_names[:known]) if known else 0
        prepared = Dataset.of(dataset, self.backbone, labels, task_rows)
        names = tuple(self.class_names)
        view = TaskView(index, name, classes, known, seen, self.kind, names, prepared, self.settings)
        trainable = self.method.adapt == "every-task" or index == 0
        return self._context(view, adapter_trainable=trainable, inference=False)

    def _context(self, task: TaskView, *, adapter_trainable: bool, inference: bool) -> Context:
        mask = torch.zeros(max(len(self.class_tasks), 1), task.seen, dtype=torch.bool)
        if task.seen != len(self.class_names):
            mask[:] = True
        elif self.class_tasks:
            columns = [np.asarray(each, dtype=np.int64) for each in self.class_tasks]
            rows = np.repeat(np.arange(len(columns)), [len(each) for each in columns])
            mask[torch.from_numpy(rows), torch.from_numpy(np.concatenate(columns))] = True
        method, named = self.method, self.kind == "task-incremental"
        parts = (method.adapter, method.head, method.router)
        model = Model(self.backbone, *parts, adapter_trainable, mask, named, self.objective)
        passes = CachedPasses(task, model, self.feature_cache, inference, self._base_fingerprint, self._extra_steps)
        return Context(task, model, passes)

    def _extra_steps(self, context: Context, rules: Sequence[Rule]) -> None:
        """All gradient steps of the task with these rules alone; neither shown nor saved."""
        train(context, rules, self.processes, self.ledger, lambda report: None)

    def fit(
        self,
        context: Context,
        after_step: AfterStep,
        *,
        done: int = 0,
        memory: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Gradient steps where something is trained by gradient, then heads solved in closed form."""
        trained = sum(parameter.numel() for parameter in context.model.trained().values())
        self.trainable_parameters = max(self.trainable_parameters, trained)
        with self.ledger.phase("train"):
            train(
                context,
                self.method.rules,
                self.processes,
                self.ledger,
                self._watched(after_step),
                done=done,
                memory=memory,
            )
        context = self.resting(context)
        with self.ledger.phase("fit"):
            self.method.head.fit(context)

    def end(self, context: Context) -> None:
        """Consolidate; the task's data is needed no more."""
        context = self.resting(context)
        with self.ledger.phase("end"):
            for rule in self.method.rules:
                rule.end_task(context)
            self.method.head.end_task(context)
            if self.method.router is not None:
                self.method.router.end_task(context)
            self.method.adapter.end_task(context)
        self.learned = len(self.class_tasks)

    def resting(self, context: Context) -> Context:
        """The context after the gradient steps: an adapter that learns in the first task only rests from here on."""
        return context if self.method.adapt == "every-task" else context.with_adapter_at_rest()

    def steps(self, context: Context) -> int:
        """Gradient steps of the task."""
        return steps_of(context)

    def test_dataset(self, task: Task, index: int | None = None) -> Dataset:
        """A task's test examples, ready; classes that were not learned are refused.

        `index`, the task's place in the stream, must be given in task-incremental streams; elsewhere nothing may read it.
        """
        labels = np.asarray(self.columns(task), dtype=np.int64)[task.test.labels]
        named = 0
        if self.kind == "task-incremental":
            self._allowed(index)  # refuses a task that is not named or not learned yet
            named = int(index or 0)
        return Dataset.of(
            self._in_columns(task.test, task), self.backbone, labels, np.full(len(labels), named, dtype=np.int64)
        )

    def forget(self, task: Task) -> None:
        """Unlearn these training examples exactly, with a head of sums: as if they had never been learned.

        Give the examples as they were learned (a task, or a part of one); a class that loses all of its examples is
        never answered again. What a trained adapter took from them stays in it.
        """
        if self.method.adapter.lifetime is not Lifetime.NOTHING and self.method.adapt == "every-task":
            raise ConfigError(
                "only a frozen feature can be unlearned exactly; this method trains its adapter in every task"
            )
        labels = np.asarray(self.columns(task), dtype=np.int64)[task.train.labels]
        dataset = Dataset.of(task.train, self.backbone, labels, np.zeros(len(labels), dtype=np.int64))
        self.method.head.forget(self.reading(None).with_data(dataset).with_adapter_at_rest())

    def judge(self, dataset: Dataset, allowed: Sequence[int] | None = None) -> Judged:
        """Answers to all examples and how good they are; depends on no other row."""
        return self.objective.judge(self.reading(dataset), dataset, allowed)

    def judge_task(self, index: int, dataset: Dataset) -> Judged:
        """Answers to the test data of the stream's task `index`, as `predict` gives them, and how good they are."""
        return self.judge(dataset, self._allowed(index if self.kind == "task-incremental" else None))

    def answers(self, dataset: Dataset, allowed: Sequence[int] | None = None) -> Rows:
        """The best column (n,) for every example, where every answer is one class."""
        place = {name: column for column, name in enumerate(self.class_names)}
        found = self.judge(dataset, allowed).columns["prediction"]
        return np.array([place[name] for name in found], dtype=np.int64)

    def _score_columns(self, names: Sequence[str]) -> int:
        return self.objective.score_columns(self.backbone, names)

    def _in_columns(self, examples: Examples, task: Task) -> Examples:
        """Examples whose targets, if they have any, are told in head columns."""
        if examples.targets is None:
            return examples
        return replace(examples, targets=examples.targets.mapped(np.asarray(self.columns(task), dtype=np.int64)))

    def columns(self, task: Task) -> tuple[int, ...]:
        """The head column of each of the task's classes."""
        place = {name: column for column, name in enumerate(self.class_names)}
        missing = [name for name in task.class_names if name not in place]
        if missing:
            raise DataError(f"task {task.name!r} has class {missing[0]!r}, which was not learned; learn the task first")
        return tuple(place[name] for name in task.class_names)

    def state(self) -> State:
        """Everything the learner remembers."""
        parts = {"adapter": self.method.adapter.state(), "head": self.method.head.state()}
        parts["objective"] = self.objective.state()
        if self.method.router is not None:
            parts["router"] = self.method.router.state()
        parts |= {f"rule{i}": rule.state() for i, rule in enumerate(self.method.rules)}
        nested = State.nested(parts)
        own = {
            "class_names": list(self.class_names),
            "class_tasks": [list(columns) for columns in self.class_tasks],
            "learned": self.learned,
            "trainable_parameters": self.trainable_parameters,
            "base_hash": self.base_hash,
        }
        return State(nested.tensors, {**nested.values, "learner": own})

    def load_state(self, state: State, tasks: Sequence[Task] = ()) -> Context | None:
        """Take back what `state` gave; `tasks` are those being learned where the state is from inside a task."""
        own = state.values["learner"]
        if own["base_hash"] != self.base_hash:
            raise ConfigError(
                f"the checkpoint belongs to a model with hash {own['base_hash'][:12]} but "
                f"{self.backbone.config.path} has "
                f"{self.base_hash[:12]}; load the model the run began with"
            )
        self.class_names, self.learned = list(own["class_names"]), int(own["learned"])
        self.class_tasks = [tuple(columns) for columns in own["class_tasks"]]
        self.trainable_parameters = int(own["trainable_parameters"])
        before = {column for columns in self.class_tasks[: self.learned] for column in columns}
        context = self.context(tasks, len(before)) if tasks else self.reading(None)
        self.objective.load_state(state.inner("objective"), context)
        self.method.adapter.load_state(state.inner("adapter"), context)
        self.method.head.load_state(state.inner("head"), context)
        if self.method.router is not None:
            self.method.router.load_state(state.inner("router"), context)
        for i, rule in enumerate(self.method.rules):
            rule.load_state(state.inner(f"rule{i}"), context)
        return context

    def stored_bytes(self) -> int:
        """Bytes kept for the past and for prediction, the base model not counted."""
        state = self.state()
        texts = sum(len(text.encode()) for text in strings_in(state.values))
        return sum(tensor.nbytes for tensor in state.tensors.values()) + texts

    def base_unchanged(self) -> bool:
        """Whether the base weights are, to the bit, what was loaded."""
        return self.backbone.base_hash() == self._frozen_hash

    def reading(self, dataset: Dataset | None) -> Context:
        """A context for prediction: the model at rest."""
        rows: Rows = np.zeros(0, dtype=np.int64)
        empty = Examples([], rows, rows, self.backbone.modality)
        data = dataset or Dataset(empty, self.backbone.prepare([]), rows, rows)
        seen = self._score_columns(self.class_names)
        index, names = max(self.learned - 1, 0), tuple(self.class_names)
        view = TaskView(index, "", (), seen, seen, self.kind, names, data, self.settings)
        return self._context(view, adapter_trainable=self.method.adapt == "every-task", inference=True)

    @cached_property
    def _base_fingerprint(self) -> str:
        """Names what features of the frozen model depend on, beside the examples."""
        backbone = self.backbone
        reading = [backbone.feature, backbone.parts.reader.description(), backbone.device.type, backbone.precision]
        described = repr([*reading, self.feature_cache.settings.batch_size])
        return f"{self.base_hash[:16]}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"

    def _allowed(self, task: int | None) -> Sequence[int] | None:
        if self.kind != "task-incremental":
            if task is not None:
                raise ConfigError(
                    f"a task was named, but in a {self.kind} stream the learner answers without; leave it out"
                )
            return None
        if task is None or not 0 <= task < self.learned:
            raise ConfigError(f"task is {task}; in a task-incremental stream name one of 0 to {self.learned - 1}")
        return self.class_tasks[task]

    def _require_modality(self, task: Task) -> None:
        if task.train.modality != self.backbone.modality:
            raise ConfigError(
                f"task {task.name!r} holds {task.train.modality} examples but {self.backbone.config.path} reads "
                f"{self.backbone.modality}; take another model or other data"
            )
        if not len(task.train):
            raise DataError(f"task {task.name!r} has no training examples; give at least one")

    def _watched(self, after_step: AfterStep) -> AfterStep:
        def report(done: StepReport) -> None:
            self.observer.step(done.epoch, done.step, done.loss, done.examples)
            after_step(done)

        return report


def strings_in(value: Any) -> list[str]:
    """All strings inside plain JSON values."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for item in items for text in strings_in(item)]
