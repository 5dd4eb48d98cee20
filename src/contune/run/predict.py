"""Answers for new inputs from a finished or stopped run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, UnidentifiedImageError

from contune.backbone.config import ModelConfig
from contune.engine.learner import Learner
from contune.errors import DataError, RunDirectoryError
from contune.run.config import RunConfig
from contune.run.directory import RunDirectory
from contune.run.execute import choose_device, make_method


def load_learner(directory: Path) -> Learner:
    """The learner as the newest whole checkpoint between tasks left it; the stream's data is not needed."""
    found = RunDirectory.open(directory).newest()
    if found is None:
        raise RunDirectoryError(f"{directory} has no checkpoint yet; finish a task first: contune resume {directory}")
    state, position, _ = found
    values = yaml.safe_load((directory / "config.yaml").read_text())
    values.pop("base", None)
    config = RunConfig.model_validate(values)
    if position["step"]:
        raise RunDirectoryError(f"{directory} stopped inside a task; finish it first: contune resume {directory}")
    model: ModelConfig = config.model
    learner = Learner(
        model,
        make_method(config),
        kind=config.stream.kind,
        train=config.train,
        cache=config.cache,
        device=choose_device(config.device),
    )
    learner.load_state(state)
    return learner


def predict_file(directory: Path, source: Path, task: int | None) -> Iterator[tuple[str, str]]:
    """Each input's name and answer."""
    learner = load_learner(directory)
    names, inputs = read_inputs(source, learner.backbone.modality)
    yield from zip(names, learner.predict(inputs, task=task), strict=True)


def read_inputs(source: Path, modality: str) -> tuple[list[str], Sequence[Any]]:
    """Texts of a file, one a line, or images of a file or folder."""
    if not source.exists():
        raise DataError(f"there is no {source}; give a text file, an image or a folder of images")
    if modality == "text":
        lines = [line.strip() for line in source.read_text().splitlines()]
        texts = [line for line in lines if line]
        if not texts:
            raise DataError(f"{source} holds no text; write one text a line")
        return texts, texts
    paths = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{path} is not a readable image: {error}") from error
    return [str(path) for path in paths], images
