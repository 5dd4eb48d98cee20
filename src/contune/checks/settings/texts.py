"""Texts: sentences whose words tell the class, and a tiny random text encoder."""

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

from contune.checks.classes import ClassSetting
from contune.checks.setting import SETTINGS
from contune.checks.tiny_models import save_tiny
from contune.stream.task import Examples, Task

CLASSES = ("aaaa", "zz zz", "the cat", "012345", "...!?", "QRS")


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """Where this process keeps the tiny model; gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="contune-tiny-text-")


@cache
def text_model() -> str:
    """The folder of a tiny random BERT, made once per process."""
    return str(save_tiny("bert", Path(_folder().name) / "bert"))


def text_examples(names: tuple[str, ...], each: int, start: int) -> Examples:
    """`each` texts a class: its word once or twice, then a number that tells nothing."""
    texts = [" ".join([*[name] * (1 + i % 2), str(i)]) for name in names for i in range(start, start + each)]
    return Examples(texts, np.repeat(np.arange(len(names)), each), np.arange(len(texts)), "text")


@cache
def text_tasks() -> tuple[Task, ...]:
    """Three tasks of two classes, 12 training and 8 test examples a class."""
    pairs = [CLASSES[at : at + 2] for at in (0, 2, 4)]
    return tuple(Task(f"texts {n}", p, text_examples(p, 12, 0), text_examples(p, 8, 12)) for n, p in enumerate(pairs))


@final
class Texts(ClassSetting):
    """Short texts, two classes a task."""

    name: ClassVar[str] = "texts"
    train: ClassVar[Mapping[str, Any]] = {**SETTINGS, "batch_size": 8}

    def model(self) -> str:
        return text_model()

    def tasks(self) -> tuple[Task, ...]:
        return text_tasks()


SETTING = Texts()
