"""EASE at evaluation: contune sends an example through a finished module once, the published loop after every task again.

    python benchmarks/ease.py ../shared                               # ten tasks of CIFAR-100, ViT-Tiny at 224 pixels
    python benchmarks/ease.py ../shared --tasks 20 --image-size 64

The plain side does what the released code does: a fresh parallel bottleneck in every layer for each task, trained through
a cosine head over the task's own classes; class means in the subspaces of all bottlenecks, stand-ins for old classes in
new subspaces; and after each task all test images of all seen tasks through all modules so far. All else is the same on
both sides: size 64, scale 0.1, dropout 0.1, alpha 0.1, SGD with half a cosine, batches of 48, no augmentation. Neither
side gains much in training; --epochs 1 is enough to compare evaluations.
"""

import math

import torch
from torch.nn import functional

import pairs
import work

SIZE, SCALE, DROPOUT, ALPHA, BATCH = 64, 0.1, 0.1, 0.1, 48
SGD = {"lr": 0.025, "momentum": 0.9, "weight_decay": 5e-4}


def with_contune(chosen) -> float:
    """Last accuracy with contune."""
    from contune import Learner
    from contune.backbone.config import ModelConfig

    model = ModelConfig(path=str(chosen.shared / work.VIT), image_size=chosen.image_size)
    train = {"epochs": chosen.epochs, "batch_size": BATCH, "precision": chosen.precision, "optimizer": "sgd", **SGD}
    learner = Learner(model, "ease", train=train, size=SIZE, scale=SCALE, dropout=DROPOUT, alpha=ALPHA)
    return work.run_contune(learner, work.cifar_tasks(chosen.shared, chosen.tasks, chosen.tasks, chosen.per_class))


class Bottleneck(torch.nn.Module):
    """A narrow branch beside an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = torch.nn.Linear(width, SIZE), torch.nn.Linear(SIZE, width)
        torch.nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for start in (self.down.bias, self.up.weight, self.up.bias):
            torch.nn.init.zeros_(start)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        hidden = functional.dropout(functional.relu(self.down(states)), DROPOUT, self.training)
        return self.up(hidden) * SCALE


def train_module(features, module: torch.nn.ModuleList, task, width: int, epochs: int) -> None:
    """SGD on the task's own classes through a cosine head with a learnt factor, dropped at the end."""
    weight = torch.nn.Parameter((torch.rand(len(task.class_names), width) * 2 - 1) / width**0.5)
    factor, labels = torch.nn.Parameter(torch.ones(())), torch.from_numpy(task.train.labels)
    optimizer = torch.optim.SGD([*module.parameters(), weight, factor], **SGD)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(labels) // BATCH))
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(BATCH):
            found = functional.normalize(features([task.train.inputs[i] for i in rows]), dim=1)
            loss = functional.cross_entropy(factor * found @ functional.normalize(weight, dim=1).T, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    module.eval().requires_grad_(False)


def completed(means: list[torch.Tensor], per_task: int) -> torch.Tensor:
    """Means (T, C, d) with stand-ins: means[b] has the real ones of the classes from task b on."""
    blocks = torch.stack([torch.cat([m.new_zeros(len(means[0]) - len(m), m.shape[1]), m]) for m in means])
    for block in range(len(means)):
        donors = slice(block * per_task, None)
        for owner in range(block):
            rows = slice(owner * per_task, (owner + 1) * per_task)
            normal = functional.normalize(blocks[owner], dim=1)
            blocks[block, rows] = (normal[rows] @ normal[donors].T).softmax(1) @ blocks[block, donors]
    return blocks


def plain(chosen) -> float:
    """Last accuracy by the published loop."""
    vit = work.PlainVit(chosen.shared, chosen.image_size)
    tasks = work.cifar_tasks(chosen.shared, chosen.tasks, chosen.tasks, chosen.per_class)
    per_task, modules, means = len(tasks[0].class_names), [], []
    classifier = torch.zeros(0)

    def forward(pixels: torch.Tensor, module) -> torch.Tensor:
        return vit(pixels, branches=dict(enumerate(module)))[:, 0]

    def learn(task, _start: int) -> None:
        nonlocal classifier
        modules.append(torch.nn.ModuleList(Bottleneck(vit.width) for _ in vit.model.layers))
        train_module(lambda images: forward(vit.read(images), modules[-1]), modules[-1], task, vit.width, chosen.epochs)
        labels = torch.from_numpy(task.train.labels)
        means.append(torch.zeros(0, vit.width))
        with torch.no_grad():
            for block, module in enumerate(modules):
                batches = torch.arange(len(labels)).split(32)
                pixels = (vit.read([task.train.inputs[i] for i in rows]) for rows in batches)
                found = torch.cat([forward(batch, module) for batch in pixels])
                new = torch.stack([found[labels == label].mean(0) for label in range(per_task)])
                means[block] = torch.cat([means[block], new])
        classifier = functional.normalize(completed(means, per_task), dim=2)

    def answers(images) -> torch.Tensor:
        owners, pixels = torch.arange(classifier.shape[1]) // per_task, vit.read(images)
        scores, rest = torch.zeros(len(images), len(owners)), ALPHA / max(len(modules) - 1, 1)
        for block, module in enumerate(modules):
            cosines = functional.normalize(forward(pixels, module), dim=1) @ classifier[block].T
            scores += cosines * torch.where(owners == block, 1.0, rest)
        return scores.argmax(1)

    return work.run_plain(learn, answers, tasks)


if __name__ == "__main__":
    pairs.main(
        __doc__,
        "ease, {tasks} tasks of CIFAR-100, {epochs} epochs, ViT-Tiny at {image_size} pixels",
        plain,
        with_contune,
        work.add_stream_flags(tasks=10, epochs=1),
    )
