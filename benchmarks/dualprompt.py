"""DualPrompt over a stream: contune computes the query of an image once, the published loop at every step and evaluation.

    python benchmarks/dualprompt.py ../shared                         # ViT-Tiny at 224 pixels, ten tasks of CIFAR-100
    python benchmarks/dualprompt.py ../shared --image-size 64 --tasks 3 --views 1

The plain side does what the released code does: a second forward pass of the frozen model for the query, for each batch
of training and again whenever a test image is evaluated. All else is the same on both sides: a general prefix of length
5 in the first two layers, an expert prefix of length 5 for each task in the next three, started as a copy of the one
before, a key per task, the nearest key's expert for each image by itself, loss over the task's own classes, Adam. All
seen tasks are evaluated after each task. Images are not augmented, or with --views N at random for each step by the plain
loop, while contune takes one of N fixed random views in each epoch, of which it keeps the queries. From the same weights
and images both sides come to the same loss and gradients; accuracies move by some points from seed to seed.
"""

import torch
from torch.nn import functional

import pairs
import work

LENGTH, GENERAL, EXPERT, RATE = 5, (0, 1), (2, 3, 4), 5e-3


def with_contune(chosen) -> float:
    """Last accuracy with contune."""
    from contune import Learner
    from contune.backbone.config import ModelConfig

    model = ModelConfig(path=str(chosen.shared / work.VIT), image_size=chosen.image_size)
    options = {"general_length": LENGTH, "expert_length": LENGTH, "pull": 1.0}
    options |= {"general_layers": list(GENERAL), "expert_layers": list(EXPERT)}
    learner = Learner(model, "dualprompt", train=work.prompt_settings(chosen, RATE), **options)
    return work.run_contune(learner, work.cifar_tasks(chosen.shared, chosen.tasks, per_class=chosen.per_class))


def plain(chosen) -> float:
    """Last accuracy by the published loop."""
    vit, head = work.PlainVit(chosen.shared, chosen.image_size), None
    general = torch.nn.Parameter(torch.rand(len(GENERAL), 2, LENGTH, vit.width) * 0.01)
    experts: list[torch.nn.Parameter] = []
    keys: list[torch.nn.Parameter] = []

    def features(pixels, expert: torch.Tensor) -> torch.Tensor:
        """Class tokens with an expert (B, layers, 2, length, d) for each row."""
        whole = torch.cat([general.expand(len(pixels), -1, -1, -1, -1), expert], dim=1)
        pairs_of = {layer: (whole[:, i, 0], whole[:, i, 1]) for i, layer in enumerate((*GENERAL, *EXPERT))}
        return vit(pixels, prefixes=pairs_of)[:, 0]

    def learn(task, start: int) -> None:
        nonlocal head
        head = work.grown_head(head, vit.width, start + len(task.class_names), zero=True)
        copied = experts[-1].detach().clone() if experts else torch.rand(len(EXPERT), 2, LENGTH, vit.width) * 0.01
        experts.append(torch.nn.Parameter(copied))
        keys.append(torch.nn.Parameter(torch.rand(vit.width) * 0.01))
        labels = torch.from_numpy(task.train.labels)

        def loss(rows) -> torch.Tensor:
            pixels = vit.read([task.train.inputs[i] for i in rows], augment=bool(chosen.views))
            pull = functional.cosine_similarity(vit.query(pixels), keys[-1].unsqueeze(0)).mean()
            found = head(features(pixels, experts[-1].expand(len(rows), -1, -1, -1, -1)))
            return functional.cross_entropy(found[:, start:], labels[rows]) - pull

        work.fit_plain(loss, [general, experts[-1], keys[-1], *head.parameters()], len(labels), chosen, lr=RATE)

    def answers(images) -> torch.Tensor:
        pixels = vit.read(images)
        queries = functional.normalize(vit.query(pixels), dim=1)
        nearest = (queries @ functional.normalize(torch.stack(keys), dim=1).T).argmax(1)
        return head(features(pixels, torch.stack(experts)[nearest])).argmax(1)

    return work.run_plain(learn, answers, work.cifar_tasks(chosen.shared, chosen.tasks, per_class=chosen.per_class))


if __name__ == "__main__":
    pairs.main(
        __doc__,
        "dualprompt, {tasks} tasks of CIFAR-100, {epochs} epochs, ViT-Tiny at {image_size} pixels",
        plain,
        with_contune,
        work.add_prompt_flags(tasks=10, epochs=5),
    )
