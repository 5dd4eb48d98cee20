"""The learner: a frozen model, a method, and what it has learned so far."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from contune.backbone.config import ModelConfig
from contune.contract.capability import Lifetime
from contune.contract.context import Context
from contune.contract.data import Dataset, Rows
from contune.contract.objective import Judged, Objective, Prediction
from contune.contract.parts import Part, Rule
from contune.contract.processes import Processes
from contune.contract.settings import CacheSettings
from contune.contract.state import State
from contune.engine.contexts import Contexts
from contune.engine.kept.cache import FeatureCache, MemoryCache
from contune.engine.known import Known
from contune.engine.observer import Observer
from contune.engine.predictor import Predictor, Scores
from contune.engine.requirements import checked_kind, checked_settings, loaded_backbone
from contune.engine.saved import read_state, write_state
from contune.engine.steps.loop import AfterStep, StepReport, steps_of, train
from contune.engine.steps.online import grow, learn_chunk, refuse_waiting
from contune.engine.steps.stepper import Stepper
from contune.errors import ConfigError, DataError, RunDirectoryError
from contune.method.catalog import build_method, build_objective
from contune.method.method import Method
from contune.metric.ledger import Ledger
from contune.stream.events import Arrive, task_of
from contune.stream.inputs import Inputs
from contune.stream.task import Kind, Task, names_tasks


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
        self.kind = checked_kind(kind, self.objective)
        self.settings = checked_settings(self.method, train or {}, self.objective)
        self.processes = processes or Processes()
        self.observer = observer or Observer()
        self.ledger = Ledger()
        config = model if isinstance(model, ModelConfig) else ModelConfig(path=str(model))
        with self.ledger.phase("load"):
            self.backbone = loaded_backbone(config, device, self.objective, self.settings)
            self.base_hash = self.backbone.base_hash()
        self.feature_cache = FeatureCache(
            cache or CacheSettings(), self.ledger, self.processes, self.observer.watch, memory_cache, self.observer.note
        )
        self.method.adapter.attach(self.backbone, self.settings.seed)
        self.backbone.cast_frozen(self.method.adapter.trained().values())
        self._frozen_hash = self.base_hash if self.settings.precision == "fp32" else self.backbone.base_hash()
        self._given = {"method": method if isinstance(method, str) else None, "options": dict(options)}
        self._lock = threading.RLock()
        self._stepper: Stepper | None = None
        self._adapt_stepper: Stepper | None = None
        self.known = Known()
        made = (self.backbone, self.base_hash, self.method, self.objective, self.settings, self.kind)
        self._contexts = Contexts(*made, self.feature_cache, self.known, self._extra_steps)
        self.learned = 0
        self.trainable_parameters = 0

    @property
    def class_names(self) -> list[str]:
        """Names of all classes so far, in the order of their columns."""
        return self.known.class_names

    @property
    def class_tasks(self) -> list[tuple[int, ...]]:
        """The columns of every task so far."""
        return self.known.class_tasks

    def __repr__(self) -> str:
        method = self._given["method"] or self.method.adapter.name
        learned = f"{len(self.class_names)} classes of {self.learned} tasks"
        return f"Learner({self.backbone.config.path!r}, {method!r}, {self.objective.name}: {learned})"

    def learn(self, task: Task | Sequence[Task]) -> None:
        """Learn one task, or several at once as if they were one (joint training)."""
        context = self.begin(task)
        self.fit(context, lambda report: None)
        self.end(context)

    def predict(self, inputs: Inputs, *, task: int | None = None) -> list[Prediction]:
        """The answer to every input, as text that knows its score.

        `task` names the task where the stream is task-incremental, and only there.
        """
        if not self.class_names:
            raise ConfigError("the learner has not learned any task yet; call learn(task) first")
        allowed = self._allowed(task)
        with self._lock:  # modules of an adapter are switched while a batch goes through them
            dataset = self._contexts.unlabelled(inputs, task or 0)
            return self.objective.predict(self.reading(dataset, keep=False), dataset, allowed)

    def observe(self, arrived: Task | Arrive, steps: int | None = None, *, updates_per_example: float = 1.0) -> None:
        """Learn from a chunk of a stream without tasks, in so many gradient steps on the whole chunk.

        Without `steps` they are `updates_per_example` for each example, with fractions carried to the next chunk. Classes
        that are new get columns; nothing else is told. The optimizer's memory lives from chunk to chunk. Refused where a
        part of the method waits for the end of a task.
        """
        task = arrived if isinstance(arrived, Task) else task_of(arrived, "chunk")
        self._require_modality(task)
        first = self._stepper is None
        if self._stepper is None:
            refuse_waiting(self.method, self.settings)
            if self.class_names:
                raise ConfigError("the learner has learned tasks already; go on with learn, or start a new learner")
            self._stepper = Stepper()
        known = len(self.class_names)
        new = self.known.meet_chunk(task.class_names)
        context = self.context([task], known)
        with self.ledger.phase("begin"):
            if first or new:
                grow(context, list(self._parts.values()), first=first)
        taken = self._stepper.steps_for(len(task.train), updates_per_example) if steps is None else steps
        learn_chunk(context, self.method.rules, self._stepper, self.processes, self.ledger, taken)

    def adapt(self, inputs: Inputs) -> list[Prediction]:
        """Answer inputs, then take one gradient step on them without labels, by a rule such as entropy-minimisation.

        The answers come from the model as it was before; the learner changes itself.
        """
        rules = [rule for rule in self.method.rules if type(rule).unlabelled_loss is not Rule.unlabelled_loss]
        if not rules:
            raise ConfigError(
                "nothing in this method learns without labels; add a rule that does, such as entropy-minimisation"
            )
        answers = self.predict(inputs)
        with self._lock:
            self._adapt_stepper = self._adapt_stepper or Stepper()
            context = self.reading(self._contexts.unlabelled(inputs, 0), keep=False)
            self._adapt_stepper.adapt(context, rules, self.processes, self.ledger)
        return answers

    def predictor(self) -> Predictor:
        """A read-only view that only answers, safe to ask from several threads; it answers as the learner stands."""
        return Predictor(self)

    def evaluate(self, tasks: Task | Sequence[Task]) -> Scores:
        """The objective's main measure on the test examples of tasks that were learned, by the tasks' names."""
        each = [tasks] if isinstance(tasks, Task) else list(tasks)
        main, found = self.objective.measures[0], {}
        for task in each:
            index = self._place(task)
            judged = self.judge_task(index, self.test_dataset(task, index))
            found[task.name] = main.cell(judged.columns, task.class_names)
        return Scores(main.title, found)

    def save(self, folder: str | Path) -> Path:
        """Write everything the learner remembers to a new folder, from which `Learner.load` makes it again."""
        folder = Path(folder)
        if folder.exists():
            raise RunDirectoryError(f"{folder} exists already and is never overwritten; give a new folder")
        made = {"objective": self.objective.name, "kind": self.kind, "train": self.settings.model_dump(mode="json")}
        model = self.backbone.config.model_dump(mode="json")
        write_state(folder, self.state(), {"format": 1, "model": model, **made, **self._given})
        return folder

    @staticmethod
    def load(folder: str | Path, *, method: Method | None = None, **changes: Any) -> "Learner":
        """The learner that `save` wrote. Give `method` where it was made from a `Method` and not from a recipe's name.

        `changes` are keywords of the constructor that may differ here, such as `device`.
        """
        state, given = read_state(Path(folder), "learner")
        recipe = given["method"] if method is None else method
        if recipe is None:
            raise ConfigError(f"{folder} was saved by a learner of a Method of its own; give that as method=")
        options = given["options"] if method is None else {}
        kept = {name: given[name] for name in ("objective", "kind", "train")}
        learner = Learner(ModelConfig.model_validate(given["model"]), recipe, **{**kept, **changes}, **options)
        learner.load_state(state)
        return learner

    def _place(self, task: Task) -> int:
        """The number of a task among those learned, which counts where the stream names tasks."""
        known = enumerate(self.class_tasks) if names_tasks(self.kind) else ()
        return next((at for at, columns in known if columns == self.columns(task)), 0)

    def context(self, tasks: Sequence[Task], known: int) -> Context:
        """What the parts may see while these tasks, met already, are learned; `known` classes were met before them."""
        return self._contexts.learning(tasks, self.learned, known)

    def reading(self, dataset: Dataset | None, *, keep: bool = True) -> Context:
        """A context for prediction: the model at rest. Without `keep` nothing of the data stays in any cache."""
        return self._contexts.reading(dataset, self.learned, keep=keep)

    def test_dataset(self, task: Task, index: int | None = None) -> Dataset:
        """A task's test examples, ready; classes that were not learned are refused.

        `index`, the task's place in the stream, must be given in task-incremental streams; elsewhere nothing may read it.
        """
        if names_tasks(self.kind):
            self._allowed(index)  # refuses a task that is not named or not learned yet
        return self._contexts.test_dataset(task, index)

    def begin(self, task: Task | Sequence[Task]) -> Context:
        """Meet a task: new classes get columns, adapter and head grow, rules look at the past while it is intact."""
        tasks = [task] if isinstance(task, Task) else list(task)
        known = len(self.class_names)
        if self._stepper is not None:
            raise ConfigError("the learner has observed chunks; go on with observe, or start a new learner")
        for each in tasks:
            self._require_modality(each)
            self.known.meet(each)
        context = self.context(tasks, known)
        with self.ledger.phase("begin"):
            for part in self._parts.values():
                part.begin_task(context)
        return context

    @property
    def _parts(self) -> dict[str, Part]:
        """All parts by name, in the order in which they meet a task."""
        method = self.method
        router = {} if method.router is None else {"router": method.router}
        rules = {f"rule{number}": rule for number, rule in enumerate(method.rules)}
        return {"objective": self.objective, "adapter": method.adapter, **router, "head": method.head, **rules}

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

    def forget(self, task: Task) -> None:
        """Unlearn these training examples exactly, with a head of sums: as if they had never been learned.

        Give the examples as they were learned (a task, or a part of one); a class that loses all of its examples is
        never answered again. What a trained adapter took from them stays in it.
        """
        if self.method.adapter.lifetime is not Lifetime.NOTHING and self.method.adapt == "every-task":
            raise ConfigError(
                "only frozen features can be unlearned exactly; this method trains its adapter in every task"
            )
        labels = self.known.labels(task.train, task)
        dataset = Dataset.of(task.train, self.backbone, labels, np.zeros(len(labels), dtype=np.int64))
        self.method.head.forget(self.reading(None).with_data(dataset).with_adapter_at_rest())

    def judge(self, dataset: Dataset, allowed: Sequence[int] | None = None) -> Judged:
        """Answers to all examples and how good they are; depends on no other row."""
        return self.objective.judge(self.reading(dataset), dataset, allowed)

    def judge_task(self, index: int, dataset: Dataset) -> Judged:
        """Answers to the test data of the stream's task `index`, as `predict` gives them, and how good they are."""
        return self.judge(dataset, self._allowed(index if names_tasks(self.kind) else None))

    def answers(self, dataset: Dataset, allowed: Sequence[int] | None = None) -> Rows:
        """The best column (n,) for every example, where every answer is one class."""
        place = {name: column for column, name in enumerate(self.class_names)}
        found = self.judge(dataset, allowed).columns["prediction"]
        return np.array([place[name] for name in found], dtype=np.int64)

    def columns(self, task: Task) -> tuple[int, ...]:
        """The head column of each of the task's classes."""
        return self.known.columns(task)

    def state(self) -> State:
        """Everything the learner remembers."""
        parts = {name: part.state() for name, part in self._parts.items()}
        if self._stepper is not None:
            parts["stepper"] = self._stepper.state()
        nested = State.nested(parts)
        own = {
            **self.known.state(),
            "learned": self.learned,
            "trainable_parameters": self.trainable_parameters,
            "base_hash": self.base_hash,
            **({} if self._stepper is None else {"chunks": True}),
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
        self.known.load_state(own)
        self.learned = int(own["learned"])
        self.trainable_parameters = int(own["trainable_parameters"])
        before = {column for columns in self.class_tasks[: self.learned] for column in columns}
        context = self.context(tasks, len(before)) if tasks else self.reading(None)
        if own.get("chunks"):
            self._stepper = Stepper()
            self._stepper.load_state(state.inner("stepper"))
        for name, part in self._parts.items():
            part.load_state(state.inner(name), context)
        return context

    def stored_bytes(self) -> int:
        """Bytes kept for the past and for prediction, the base model not counted."""
        return self.state().nbytes()

    def base_unchanged(self) -> bool:
        """Whether the base weights are, to the bit, what was loaded."""
        return self.backbone.base_hash() == self._frozen_hash

    def _allowed(self, task: int | None) -> Sequence[int] | None:
        if not names_tasks(self.kind):
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
