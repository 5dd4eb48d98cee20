"""Numbers: what the words of a text add up to, far from mean 0 and deviation 1."""

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, final

import numpy as np

from contune.checks.targets import WORDS, TargetSetting, pairs_of, target_task
from contune.engine.learner import Learner
from contune.stream.task import Kind, Targets, Task


@cache
def value_tasks() -> tuple[Task, ...]:
    """Three tasks of one and the same number, from other words."""
    return tuple(value_task(f"values {number}", words) for number, words in enumerate(WORDS))


def value_task(name: str, words: Sequence[str]) -> Task:
    """Texts of two words, each of which is worth some hundreds."""
    pairs = pairs_of(words)
    sums = Targets.of_rows([[500.0 + 100.0 * sum(map(words.index, pair))] for pair in pairs], numbers=True)
    return target_task(name, ("weight",), [" ".join(pair) for pair in pairs], sums, "text")


@final
class Numbers(TargetSetting):
    """Texts with a number each."""

    name: ClassVar[str] = "regress"
    objective: ClassVar[str] = "regress"
    kinds: ClassVar[tuple[Kind, ...]] = ("domain-incremental", "task-incremental")

    def tasks(self) -> tuple[Task, ...]:
        return value_tasks()

    def same(self, first: Sequence[Any], second: Sequence[Any]) -> bool:
        """Up to what the order of a sum changes, since other rows may make a batch longer."""
        return len(first) == len(second) and np.allclose(first, second, rtol=1e-5)

    def possible(self, learner: Learner, answers: Sequence[Any]) -> bool:
        return bool(np.isfinite(np.array(answers, dtype=np.float64)).all())


SETTING = Numbers()
