"""CODA-Prompt over a stream: contune computes the query of an image once and no gradient of a frozen weight.

    python benchmarks/coda_prompt.py ../shared                        # ViT-Tiny at 224 pixels, ten tasks of CIFAR-100
    python benchmarks/coda_prompt.py ../shared --image-size 64 --tasks 3 --views 1

The plain side does what the released code does: a second forward pass of the frozen model for the query, for each batch
of training and again whenever a test image is evaluated; and, because nothing says that the backbone is frozen, gradients
of all its weights at every step, which no optimizer uses or clears. All else is the same on both sides: 10 new components
of length 8 for each task in the lowest five layers, started orthonormal to all earlier ones, loss over the task's own
classes, Adam with half a cosine. All seen tasks are evaluated after each task. Images are not augmented, or with --views N
at random for each step by the plain loop, while contune takes one of N fixed random views in each epoch, of which it
keeps the queries. From the same weights and images both sides come to the same loss and gradients; accuracies move by
some points from seed to seed.
"""

import torch
from torch.nn import functional

import pairs
import work

COMPONENTS, LENGTH, LAYERS, RATE = 10, 8, (0, 1, 2, 3, 4), 1e-3


def with_contune(chosen) -> float:
    """Last accuracy with contune."""
    from contune import Learner
    from contune.backbone.config import ModelConfig

    model = ModelConfig(path=str(chosen.shared / work.VIT), image_size=chosen.image_size)
    options = {"components_per_task": COMPONENTS, "length": LENGTH, "layers": list(LAYERS)}
    learner = Learner(
        model, "coda-prompt", train={**work.prompt_settings(chosen, RATE), "schedule": "cosine"}, **options
    )
    return work.run_contune(learner, work.cifar_tasks(chosen.shared, chosen.tasks, per_class=chosen.per_class))


class Components(torch.nn.Module):
    """The pool of one layer, as large as all tasks need; a task trains its own slice and sees the earlier ones."""

    def __init__(self, tasks: int, width: int) -> None:
        super().__init__()
        count = tasks * COMPONENTS
        self.prompts = torch.nn.Parameter(torch.zeros(count, LENGTH * width))
        self.keys = torch.nn.Parameter(torch.zeros(count, width))
        self.attention = torch.nn.Parameter(torch.zeros(count, width))

    def start(self, first: int) -> None:
        """Begin the slice from row `first` orthonormal to the rows before it, which for long is possible."""
        for rows in self.parameters():
            old, stop = rows.data[:first], first + COMPONENTS
            fresh = torch.randn(COMPONENTS, rows.shape[1])
            basis = torch.linalg.qr(old.T).Q
            rows.data[first:stop] = torch.linalg.qr((fresh - fresh @ basis @ basis.T).T).Q.T

    def prefix(self, queries: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, LENGTH / 2, d): the weighted sum of the components so far."""
        stop = first + COMPONENTS
        seen = [torch.cat([rows[:first].detach(), rows[first:stop]]) for rows in self.parameters()]
        weighed = functional.normalize(queries.unsqueeze(1) * seen[2], dim=2)
        alpha = torch.einsum("bkd,kd->bk", weighed, functional.normalize(seen[1], dim=1))
        prompt = (alpha @ seen[0]).unflatten(1, (LENGTH, -1))
        return prompt[:, : LENGTH // 2], prompt[:, LENGTH // 2 :]


def plain(chosen) -> float:
    """Last accuracy by the published loop."""
    vit, head, first = work.PlainVit(chosen.shared, chosen.image_size), None, -COMPONENTS
    vit.model.requires_grad_(True)
    pools = torch.nn.ModuleList(Components(chosen.tasks, vit.width) for _ in LAYERS)

    def features(pixels) -> torch.Tensor:
        queries = vit.query(pixels)
        return vit(pixels, prefixes={at: pools[i].prefix(queries, first) for i, at in enumerate(LAYERS)})[:, 0]

    def learn(task, start: int) -> None:
        nonlocal head, first
        first += COMPONENTS
        for pool in pools:
            pool.start(first)
        head = work.grown_head(head, vit.width, start + len(task.class_names))
        labels = torch.from_numpy(task.train.labels)

        def loss(rows) -> torch.Tensor:
            pixels = vit.read([task.train.inputs[i] for i in rows], augment=bool(chosen.views))
            return functional.cross_entropy(head(features(pixels))[:, start:], labels[rows])

        trained = [*pools.parameters(), *head.parameters()]
        work.fit_plain(loss, trained, len(labels), chosen, lr=RATE, cosine=True)

    tasks = work.cifar_tasks(chosen.shared, chosen.tasks, per_class=chosen.per_class)
    return work.run_plain(learn, lambda images: head(features(vit.read(images))).argmax(1), tasks)


if __name__ == "__main__":
    pairs.main(
        __doc__,
        "coda-prompt, {tasks} tasks of CIFAR-100, {epochs} epochs, ViT-Tiny at {image_size} pixels",
        plain,
        with_contune,
        work.add_prompt_flags(tasks=10, epochs=10),
    )
