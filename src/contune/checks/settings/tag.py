"""Tags: which words of a row begin and continue an entity of the task's own type."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import ClassVar, final

import torch
from torch import Tensor

from contune.checks.targets import WORDS, TargetSetting, pairs_of, target_task
from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.objective.tag import word_scores
from contune.stream.task import Kind, Targets, Task

TYPES = ("PER", "LOC", "ORG")


@cache
def tag_tasks() -> tuple[Task, ...]:
    """Three tasks with one type of entity each."""
    return tuple(tag_task(kind, words) for kind, words in zip(TYPES, WORDS, strict=True))


def tag_task(kind: str, words: Sequence[str]) -> Task:
    """Rows of two words; the task's first word begins an entity, its second one continues it, its third is outside."""
    inputs = [list(pair) for pair in pairs_of(words)]
    tags = Targets.of_rows([[{words[0]: 1, words[1]: 2}.get(word, 0) for word in row] for row in inputs])
    return target_task(kind, ("O", f"B-{kind}", f"I-{kind}"), inputs, tags, "words")


@final
class Tags(TargetSetting):
    """Rows of words with a tag each."""

    name: ClassVar[str] = "tag"
    objective: ClassVar[str] = "tag"
    kinds: ClassVar[tuple[Kind, ...]] = ("class-incremental", "task-incremental")

    def tasks(self) -> tuple[Task, ...]:
        return tag_tasks()

    def outputs(self, context: Context, dataset: Dataset) -> Mapping[str, Tensor]:
        """The scores of every word."""
        return {"scores": torch.cat([scores for _, _, scores in word_scores(context, dataset)])}


SETTING = Tags()
