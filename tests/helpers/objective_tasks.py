"""Small tasks of each objective on words, and learners of them on a tiny encoder of texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from word_tasks import tiny_folder

from contune.engine.learner import Learner
from contune.stream.task import Examples, Targets, Task

TRAIN = {"epochs": 6, "batch_size": 4, "lr": 1e-2}
WORDS = ("aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff", "gggg", "hhhh")


def texts(words: Sequence[str], rows: int = 24) -> list[str]:
    """Texts of two words each, every pair as often as another."""
    return [f"{words[at % len(words)]} {words[(at // len(words) + at) % len(words)]}" for at in range(rows)]


def examples(inputs: Sequence[Any], targets: Targets, modality: str = "text") -> Examples:
    rows = np.zeros(len(inputs), dtype=np.int64)
    return Examples(list(inputs), rows, np.arange(len(inputs)), modality, targets)  # type: ignore[arg-type]


def label_task(name: str, words: Sequence[str]) -> Task:
    """Which of the words a text has: one label for each of them."""
    inputs = texts(words)
    found = examples(
        inputs, Targets.of_rows([[at for at, word in enumerate(words) if word in text] for text in inputs])
    )
    return Task(name, tuple(words), found, found)


def value_task(name: str, words: Sequence[str], value: str = "weight") -> Task:
    """A number that the words of a text add up to, far from mean 0 and deviation 1."""
    inputs = texts(words)
    sums = [[500.0 + 100.0 * sum(words.index(word) for word in text.split())] for text in inputs]
    found = examples(inputs, Targets.of_rows(sums, numbers=True))
    return Task(name, (value,), found, found)


def tag_task(name: str, words: Sequence[str], kind: str) -> Task:
    """Rows of words in which two of the words are the beginning and the inside of an entity."""
    names = ("O", f"B-{kind}", f"I-{kind}")
    inputs = [["zz", *text.split(), "zz"] for text in texts(words)]
    tags = [[1 if word == words[0] else 2 if word == words[1] else 0 for word in row] for row in inputs]
    found = examples(inputs, Targets.of_rows(tags), "words")
    return Task(name, names, found, found)


TASKS = {
    "multi-label": [label_task("one", WORDS[:4]), label_task("two", WORDS[4:])],
    "regress": [value_task("one", WORDS[:4]), value_task("two", WORDS[4:])],
    "tag": [tag_task("one", WORDS[:4], "PER"), tag_task("two", WORDS[4:], "LOC")],
}


def learner_of(objective: str, method: Any, **options: Any) -> Learner:
    train = {**TRAIN, **options.pop("train", {})}
    return Learner(str(tiny_folder("bert")), method, objective=objective, train=train, **options)
