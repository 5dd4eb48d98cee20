"""Images: real digits, and a tiny random image transformer."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, final

import torch

from contune.checks.classes import ClassSetting
from contune.stream.build import load_stream
from contune.stream.config import StreamConfig
from contune.stream.task import Task


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """Where this process keeps the tiny model; gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="contune-tiny-model-")


@cache
def tiny_model() -> str:
    """The folder of a tiny random image transformer, made once per process."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    return random_vit(Path(_folder().name), image_size=16, patch_size=4, initializer_range=0.2, **sizes)


def random_vit(folder: Path, *, image_size: int, **settings: Any) -> str:
    """Write an image transformer with random weights, always the same, and its preprocessor; `settings` of ViTConfig."""
    from transformers import ViTConfig, ViTModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTModel(ViTConfig(image_size=image_size, **settings), add_pooling_layer=False).save_pretrained(folder)
    logging.enable_progress_bar()
    size = {"height": image_size, "width": image_size}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "do_resize": True, "resample": 3}
    values = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    means = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **values, **means}))
    return str(folder)


@cache
def digit_tasks() -> tuple[Task, ...]:
    """Three tasks of two digits, 24 training examples a class."""
    stream = load_stream(StreamConfig(data="digits", tasks=5, per_class=24))
    return tuple(Task(t.name, t.class_names, t.train, t.test.take(range(30))) for t in stream.tasks[:3])


@final
class Images(ClassSetting):
    """Digits of scikit-learn, two a task."""

    name: ClassVar[str] = "images"

    def model(self) -> str:
        return tiny_model()

    def tasks(self) -> tuple[Task, ...]:
        return digit_tasks()


SETTING = Images()
