"""L2P over a stream: contune computes the query of an image once, the published loop at every step and evaluation.

    python benchmarks/l2p.py ../shared                                # ViT-Tiny at 224 pixels, ten tasks of CIFAR-100
    python benchmarks/l2p.py ../shared --image-size 64 --tasks 3 --views 1

The plain side does what the released code does: a second forward pass of the frozen model for the query, for each batch
of training and again whenever a test image is evaluated. All else is the same on both sides: pool of 10 prompts of length
5, the 5 nearest for each image by itself, loss over the task's own classes, Adam. All seen tasks are evaluated after
each task. Images are not augmented, or with --views N at random for each step by the plain loop, while contune takes one
of N fixed random views in each epoch, of which it keeps the queries; few views cost it some accuracy. From the same
weights and images both sides come to the same loss and gradients; accuracies move by some points from seed to seed.
"""

import torch
from torch.nn import functional

import pairs
import work

POOL, LENGTH, TOP, PULL, RATE = 10, 5, 5, 0.1, 5e-3


def with_contune(chosen) -> float:
    """Last accuracy with contune."""
    from contune import Learner
    from contune.backbone.config import ModelConfig

    model = ModelConfig(path=str(chosen.shared / work.VIT), image_size=chosen.image_size)
    options = {"pool": POOL, "length": LENGTH, "top": TOP, "pull": PULL}
    learner = Learner(model, "l2p", train=work.prompt_settings(chosen, RATE), **options)
    return work.run_contune(learner, work.cifar_tasks(chosen.shared, chosen.tasks, per_class=chosen.per_class))


def plain(chosen) -> float:
    """Last accuracy by the published loop."""
    vit, head = work.PlainVit(chosen.shared, chosen.image_size), None
    prompts = torch.nn.Parameter(torch.rand(POOL, LENGTH, vit.width) * 0.01)
    keys = torch.nn.Parameter(torch.rand(POOL, vit.width) * 0.01)

    def forward(pixels) -> tuple[torch.Tensor, torch.Tensor]:
        cosines = functional.normalize(vit.query(pixels), dim=1) @ functional.normalize(keys, dim=1).T
        similarity, nearest = cosines.topk(TOP, dim=1)
        states = vit(pixels, prompts=prompts[nearest].flatten(1, 2))
        return states[:, : TOP * LENGTH].mean(1), similarity.sum(1).mean()

    def learn(task, start: int) -> None:
        nonlocal head
        head = work.grown_head(head, vit.width, start + len(task.class_names), zero=True)
        labels = torch.from_numpy(task.train.labels)

        def loss(rows) -> torch.Tensor:
            pixels = vit.read([task.train.inputs[i] for i in rows], augment=bool(chosen.views))
            features, similarity = forward(pixels)
            return functional.cross_entropy(head(features)[:, start:], labels[rows]) - PULL * similarity

        work.fit_plain(loss, [prompts, keys, *head.parameters()], len(labels), chosen, lr=RATE)

    tasks = work.cifar_tasks(chosen.shared, chosen.tasks, per_class=chosen.per_class)
    return work.run_plain(learn, lambda images: head(forward(vit.read(images))[0]).argmax(1), tasks)


if __name__ == "__main__":
    pairs.main(
        __doc__,
        "l2p, {tasks} tasks of CIFAR-100, {epochs} epochs, ViT-Tiny at {image_size} pixels",
        plain,
        with_contune,
        work.add_prompt_flags(tasks=10, epochs=5),
    )
