"""Small tasks of short texts, and backbones of every family, for tests of adapters."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tiny_models import save_tiny

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.backbone.reader.inputs import ModelInputs
from contune.stream.task import Examples, Task

WORDS = ("aaaa", "zz", "the cat", "0123456", "...!", "QRS")
ENCODERS = ("bert", "roberta", "distilbert", "minilm", "modernbert", "vit", "deit", "dinov2", "clip-vision")


@cache
def tiny_folder(name: str) -> Path:
    """The folder of a tiny model, made once per process."""
    kept = TemporaryDirectory(prefix="contune-tiny-")
    _kept.append(kept)
    return save_tiny(name, Path(kept.name) / name)


_kept: list["TemporaryDirectory[str]"] = []


def tiny_backbone(name: str) -> Backbone:
    """A fresh backbone of a tiny model."""
    return Backbone.load(ModelConfig(path=str(tiny_folder(name))))


def few_inputs(backbone: Backbone) -> ModelInputs:
    """Three texts of unequal length, or three random images."""
    rows = np.arange(3)
    if backbone.modality == "text":
        return backbone.collate([(backbone.prepare(["a", "some words", "and a few more words"]), rows)])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    return backbone.collate([(backbone.prepare(list(pixels)), rows)])


def word_tasks(sizes: tuple[int, ...] = (2, 3, 1)) -> list[Task]:
    """Tasks of these many classes; an example of a class is its word repeated, with a number."""
    tasks, first = [], 0
    for number, size in enumerate(sizes):
        names = WORDS[first : first + size]
        first += size
        train, test = (
            Examples(
                [f"{word * (1 + i % 2)} {i}" for word in names for i in range(start, start + 6)],
                np.repeat(np.arange(size), 6),
                np.arange(6 * size),
                "text",
            )
            for start in (0, 6)
        )
        tasks.append(Task(f"task {number}", names, train, test))
    return tasks
