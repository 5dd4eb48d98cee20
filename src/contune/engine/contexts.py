"""Contexts and data sets of a learner: what parts may see while it learns, and when it answers."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from contune.backbone.backbone import Backbone
from contune.contract.context import Context, TaskView
from contune.contract.data import Dataset, Rows
from contune.contract.model import Model
from contune.contract.objective import Objective
from contune.contract.parts import Rule
from contune.contract.settings import CacheSettings, TrainSettings
from contune.engine.kept.cache import FeatureCache
from contune.engine.kept.passes import CachedPasses
from contune.engine.known import Known
from contune.method.method import Method
from contune.stream.inputs import Inputs
from contune.stream.task import Examples, Kind, Task, joined_examples, names_tasks


@final
@dataclass(frozen=True, eq=False)
class Contexts:
    """Makes them from what a learner is made of and has met; `steps` takes a task's gradient steps with some rules."""

    backbone: Backbone
    base_hash: str
    method: Method
    objective: Objective
    settings: TrainSettings
    kind: Kind
    feature_cache: FeatureCache
    known: Known
    steps: Callable[[Context, Sequence[Rule]], None]

    def learning(self, tasks: Sequence[Task], index: int, known: int) -> Context:
        """What the parts may see while these tasks, met already, are learned after `index` others.

        `known` classes were met before them.
        """
        datasets = []
        for offset, each in enumerate(tasks):
            labels, examples = self.known.labels(each.train, each), self.known.in_columns(each.train, each)
            datasets.append((examples, labels, np.full(len(labels), index + offset, dtype=np.int64)))
        dataset = datasets[0][0] if len(datasets) == 1 else joined_examples([examples for examples, _, _ in datasets])
        labels = np.concatenate([labels for _, labels, _ in datasets])
        task_rows = np.concatenate([rows for _, _, rows in datasets])
        classes = tuple(dict.fromkeys(column for each in tasks for column in self.known.columns(each)))
        name = tasks[0].name if len(tasks) == 1 else f"all {len(tasks)} tasks"
        seen = self._score_columns(self.known.class_names)
        known = self._score_columns(self.known.class_names[:known]) if known else 0
        prepared = Dataset.of(dataset, self.backbone, labels, task_rows)
        names = tuple(self.known.class_names)
        view = TaskView(index, name, classes, known, seen, self.kind, names, prepared, self.settings)
        trainable = self.method.adapt == "every-task" or index == 0
        return self._context(view, adapter_trainable=trainable, inference=False)

    def reading(self, dataset: Dataset | None, learned: int, *, keep: bool = True) -> Context:
        """A context for prediction: the model at rest. Without `keep` nothing of the data stays in any cache."""
        rows: Rows = np.zeros(0, dtype=np.int64)
        empty = Examples([], rows, rows, self.backbone.modality)
        data = dataset or Dataset(empty, self.backbone.prepare([]), rows, rows)
        seen = self._score_columns(self.known.class_names)
        index, names = max(learned - 1, 0), tuple(self.known.class_names)
        view = TaskView(index, "", (), seen, seen, self.kind, names, data, self.settings)
        trainable = self.method.adapt == "every-task"
        return self._context(view, adapter_trainable=trainable, inference=True, keep=keep)

    def test_dataset(self, task: Task, index: int | None = None) -> Dataset:
        """A task's test examples, ready; classes that were not learned are refused.

        `index`, the task's place in the stream, must be given in task-incremental streams; elsewhere nothing may read it.
        """
        labels = self.known.labels(task.test, task)
        named = int(index or 0) if names_tasks(self.kind) else 0
        return Dataset.of(
            self.known.in_columns(task.test, task), self.backbone, labels, np.full(len(labels), named, dtype=np.int64)
        )

    def unlabelled(self, inputs: Inputs, task: int) -> Dataset:
        """Inputs whose right answers nobody knows, ready."""
        rows = np.zeros(len(inputs), dtype=np.int64)
        examples = Examples(inputs, rows, np.arange(len(inputs)), self.backbone.modality)
        return Dataset.of(examples, self.backbone, rows, rows + task)

    def _context(self, task: TaskView, *, adapter_trainable: bool, inference: bool, keep: bool = True) -> Context:
        mask = self.known.mask(task.seen)
        method, named = self.method, names_tasks(self.kind)
        parts = (method.adapter, method.head, method.router)
        model = Model(self.backbone, *parts, adapter_trainable, mask, named, self.objective)
        cache = self.feature_cache if keep else self._nothing_kept
        passes = CachedPasses(task, model, cache, inference, self._base_fingerprint, self.steps)
        return Context(task, model, passes)

    def _score_columns(self, names: Sequence[str]) -> int:
        return self.objective.score_columns(self.backbone, names)

    @cached_property
    def _nothing_kept(self) -> FeatureCache:
        """A cache that keeps nothing, for the inputs of strangers."""
        settings = CacheSettings(features=False, hidden=False, batch_size=self.feature_cache.settings.batch_size)
        return FeatureCache(settings, self.feature_cache.ledger, self.feature_cache.processes, self.feature_cache.watch)

    @cached_property
    def _base_fingerprint(self) -> str:
        """Names what features of the frozen model depend on, beside the examples."""
        backbone = self.backbone
        reading = [backbone.feature, backbone.parts.reader.description(), backbone.device.type, backbone.precision]
        described = repr([*reading, self.feature_cache.settings.batch_size])
        return f"{self.base_hash[:16]}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"
