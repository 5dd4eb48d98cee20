"""Several labels: which of a task's words a text has."""

from collections.abc import Sequence
from functools import cache
from typing import ClassVar, final

from contune.checks.targets import WORDS, TargetSetting, pairs_of, target_task
from contune.stream.task import Kind, Targets, Task


@cache
def label_tasks() -> tuple[Task, ...]:
    """Three tasks of three labels."""
    return tuple(label_task(f"labels {number}", words) for number, words in enumerate(WORDS))


def label_task(name: str, words: Sequence[str]) -> Task:
    """Texts of two words, or of the same twice."""
    pairs = pairs_of(words)
    found = Targets.of_rows([sorted({words.index(word) for word in pair}) for pair in pairs])
    return target_task(name, words, [" ".join(pair) for pair in pairs], found, "text")


@final
class MultiLabels(TargetSetting):
    """Texts with one or two labels each."""

    name: ClassVar[str] = "multi-label"
    objective: ClassVar[str] = "multi-label"
    kinds: ClassVar[tuple[Kind, ...]] = ("class-incremental", "task-incremental")

    def tasks(self) -> tuple[Task, ...]:
        return label_tasks()


SETTING = MultiLabels()
