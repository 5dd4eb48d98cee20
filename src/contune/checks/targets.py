"""Checking in settings whose answers are several labels, tags or numbers."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from contune.adapter.none import NoAdapter
from contune.checks.setting import SETTINGS, Setting
from contune.checks.settings.texts import text_model
from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.engine.learner import Learner
from contune.head.linear import Linear
from contune.method.method import Method
from contune.stream.task import Examples, Targets, Task

if TYPE_CHECKING:
    from contune.checks.run import CheckRun

WORDS = (("aaaa", "bbbb", "cccc"), ("dddd", "eeee", "ffff"), ("gggg", "hhhh", "iiii"))  # a task's own


class TargetSetting(Setting):
    """Three tasks of two-word texts; which words a text has decides its answer."""

    train: ClassVar[Mapping[str, Any]] = {**SETTINGS, "epochs": 6, "batch_size": 6, "lr": 1e-2}
    better: ClassVar[float] = 0.05  # by how much the mean score must exceed that of a head that has not learned

    def model(self) -> str:
        return text_model()

    def other_orders(self) -> tuple[Task, ...]:
        """The last task, then two thirds of the first."""
        first, _, third = self.tasks()
        return third, Task(first.name, first.class_names, first.train.take(range(12)), first.test)

    def not_learned(self, trial: "CheckRun") -> str | None:
        return self._no_better(trial.scores[0])

    def not_learned_in_order(self, learner: Learner, scores: Sequence[float]) -> str | None:
        return self._no_better(scores[0])

    def possible(self, learner: Learner, answers: Sequence[Any]) -> bool:
        return all(isinstance(answer, list) and set(answer) <= set(learner.class_names) for answer in answers)

    def outputs(self, context: Context, dataset: Dataset) -> Mapping[str, Tensor]:
        return {"features": context.passes.features(dataset), "scores": context.passes.logits(dataset)}

    def _no_better(self, reached: float) -> str | None:
        """The first task's score says it: the labels of earlier tasks may be answered beside those of later ones."""
        before = untaught_score(self)
        if reached > before + self.better:
            return None
        return f"the mean score on the first task is {reached:.2f}, that of a head that has not learned {before:.2f}"


@cache
def untaught_score(setting: TargetSetting) -> float:
    """The mean score on the first task of a linear head that has not learned it."""
    learner = setting.learner(Method(NoAdapter(), Linear()), train={"epochs": 0})
    learner.learn(setting.tasks()[0])
    return setting.score(learner, setting.tasks()[:1])


def pairs_of(words: Sequence[str], rows: int = 18) -> list[tuple[str, str]]:
    """Two words for each row, every pair as often as another."""
    return [(words[at % len(words)], words[(at // len(words) + at) % len(words)]) for at in range(rows)]


def target_task(name: str, classes: Sequence[str], inputs: Sequence[Any], targets: Targets, reads: str) -> Task:
    """A task that is tested on what it is taught."""
    rows = np.zeros(len(inputs), dtype=np.int64)
    found = Examples(list(inputs), rows, np.arange(len(inputs)), reads, targets)
    return Task(name, tuple(classes), found, found)
