"""A setting: a tiny frozen model and three small tasks of one objective, in which a method is checked.

Each file of `contune.checks.settings` that defines `SETTING` is one, so an objective brings its check tasks as a file.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.contract.objective import Prediction
from contune.engine.learner import Learner
from contune.errors import ConfigError, ContuneError, did_you_mean
from contune.method.catalog import build_objective
from contune.method.method import Method
from contune.stream.inputs import Inputs
from contune.stream.task import Kind, Task

if TYPE_CHECKING:
    from contune.checks.run import CheckRun

SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "min_steps": 0,
    "batch_size": 16,
    "batches": None,
    "lr": 5e-3,
    "schedule": "constant",
}


class CheckFailed(Exception):
    """A check found that something does not hold; the message says what."""


def require(holds: bool, problem: str) -> None:
    """Fail with a sentence."""
    if not holds:
        raise CheckFailed(problem)


class Setting(ABC):
    """What the common checks need to know of an objective: its tasks, a model, and what counts as learned.

    `kinds` are the kinds of stream it can be asked in; the checks train in the first and measure in all.
    """

    name: ClassVar[str]
    objective: ClassVar[str] = "classify"
    kinds: ClassVar[tuple[Kind, ...]]
    train: ClassVar[Mapping[str, Any]] = SETTINGS

    @abstractmethod
    def model(self) -> str:
        """The folder of the tiny frozen model."""

    @abstractmethod
    def tasks(self) -> tuple[Task, ...]:
        """Three small tasks."""

    @abstractmethod
    def other_orders(self) -> tuple[Task, ...]:
        """The same examples as tasks of unequal size, in another order."""

    def odd_tasks(self) -> tuple[Task, ...]:
        """Tasks so small that something may break: one example alone, then two, which come back."""
        first, second, _ = self.tasks()
        single = Task("one example", first.class_names, first.train.take(range(1)), first.test.take(range(0)))
        few = Task("two examples", second.class_names, second.train.take(range(2)), second.test)
        return single, few, few

    @abstractmethod
    def not_learned(self, trial: "CheckRun") -> str | None:
        """What shows that a method has not learned these tasks, or None."""

    @abstractmethod
    def not_learned_in_order(self, learner: Learner, scores: Sequence[float]) -> str | None:
        """The same of a learner of `other_orders`, with the mean score on each experience right after it."""

    @abstractmethod
    def outputs(self, context: Context, dataset: Dataset) -> Mapping[str, Tensor]:
        """The features and the scores of all examples, in rows."""

    def base_features(self, backbone: Backbone) -> Tensor:
        """Features of a few examples from the model as it stands, with nothing of a method beside it."""
        inputs = self.tasks()[0].train.take(range(8)).inputs
        with torch.no_grad():
            return backbone.features(backbone.collate([(backbone.prepare(inputs), np.arange(8))]))

    def untouched(self) -> Backbone:
        """The tiny model as it was saved."""
        return Backbone.load(ModelConfig(path=self.model()), device="cpu", reads=build_objective(self.objective).reads)

    def learner(self, method: Method, *, kind: Kind | None = None, **changes: Any) -> Learner:
        """A learner on the tiny model; closed-form methods keep their own number of epochs."""
        train = dict(self.train) if method.train.get("epochs", 1) else {**self.train, "epochs": 0}
        train |= changes.pop("train", {})
        place = {"objective": self.objective, "kind": kind or self.kinds[0]}
        return Learner(self.model(), method, train=train, device="cpu", **{**place, **changes})

    def refusal(self, method: Method) -> str | None:
        """The sentence with which a method is refused here, or None where it is taken."""
        try:
            learner = self.learner(method)
        except ContuneError as refusal:
            return str(refusal)
        return self.pointless(learner)

    def pointless(self, learner: Learner) -> str | None:
        """Why a method that is taken has nothing to learn here, or None."""
        del learner
        return None

    def inputs(self) -> Inputs:
        """Two test inputs of every task."""
        return [item for task in self.tasks() for item in task.test.take(range(2)).inputs]

    def answered(self, task: Task) -> list[int]:
        """Test examples of a task that a run answers as `predict` does."""
        return list(range(len(task.test)))

    def same(self, first: Sequence[Any], second: Sequence[Any]) -> bool:
        """Whether two lists of answers are the same, as they are stored."""
        return list(first) == list(second)

    def possible(self, learner: Learner, answers: Sequence[Any]) -> bool:
        """Whether these are answers that the learner may give."""
        return set(answers) <= set(learner.class_names)

    def score(self, learner: Learner, tasks: Sequence[Task]) -> float:
        """Mean score of all test examples, no task named."""
        found = [learner.judge(learner.test_dataset(task)).score for task in tasks]
        return float(np.concatenate(found).mean())


def stored(prediction: Prediction) -> Any:
    """An answer as a run stores it: text, or a list of labels, tags or numbers.

    >>> stored(Prediction("a, b", value=("a", "b"))), stored(Prediction("0.5", value=0.5)), stored(Prediction("a"))
    (['a', 'b'], [0.5], 'a')
    """
    value = prediction.value
    if isinstance(value, str):
        return value
    return list(value) if isinstance(value, tuple | list) else [value]


@cache
def settings() -> dict[str, Setting]:
    """All settings by name, in the order of their names."""
    package = importlib.import_module("contune.checks.settings")
    found: dict[str, Setting] = {}
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        setting = importlib.import_module(info.name).SETTING
        found[setting.name] = setting
    return dict(sorted(found.items()))


def setting_of(name: str) -> Setting:
    """The setting of this name; an unknown one is refused."""
    known = settings()
    if name not in known:
        raise ConfigError(
            f"a method can be checked on {', '.join(known)}, or all; {name!r} {did_you_mean(name, known)}"
        )
    return known[name]
