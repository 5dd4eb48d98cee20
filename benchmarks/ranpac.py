"""RanPAC over a stream, strength search included: one eigendecomposition of a small matrix in place of 17 LU solves.

    python benchmarks/ranpac.py ../shared                             # ten tasks of CIFAR-100, 10,000 random features
    python benchmarks/ranpac.py ../shared --image-size 112 --tasks 2 --random-features 4000

The plain side does what the released code does, in its float32: after every task the features of its training images are
projected and added to the Gram matrix, each of 17 strengths is tried by a solve of its own on 80 % of them, and one more
solve with all sums gives the weights; the test images of all seen tasks go through the model again at each evaluation.
Neither side adapts to the first task (form small). contune reads every image once and works in float64, so its two matrices
of random features take twice the memory.
"""

import numpy as np
import torch
from torch.nn import functional

import pairs
import work


def with_contune(chosen) -> float:
    """Last accuracy with contune."""
    from contune import Learner
    from contune.backbone.config import ModelConfig

    model = ModelConfig(path=str(chosen.shared / work.VIT), image_size=chosen.image_size)
    learner = Learner(
        model, "ranpac", train={"precision": chosen.precision}, form="small", random_features=chosen.random_features
    )
    return work.run_contune(learner, work.cifar_tasks(chosen.shared, chosen.tasks))


def plain(chosen) -> float:
    """Last accuracy by the published loop."""
    _, features, width = work.plain_vit(chosen.shared, chosen.image_size)
    tasks = work.cifar_tasks(chosen.shared, chosen.tasks)
    count, classes = chosen.random_features, sum(len(task.class_names) for task in tasks)
    projection = torch.randn(width, count)
    gram, targets = torch.zeros(count, count), torch.zeros(count, classes)
    weight, seen = torch.zeros(count, classes), 0

    def learn(task, start: int) -> None:
        nonlocal gram, targets, weight, seen
        seen = start + len(task.class_names)
        order = torch.randperm(len(task.train))
        with torch.no_grad():
            found = torch.cat([features([task.train.inputs[i] for i in rows]) for rows in order.split(32)])
        h = functional.relu(found @ projection)
        one_hot = functional.one_hot(torch.from_numpy(task.train.labels)[order] + start, classes).float()
        targets, gram = targets + h.T @ one_hot, gram + h.T @ h
        strength = searched_strength(h, one_hot)
        weight = torch.linalg.solve(gram + strength * torch.eye(count), targets)

    def answers(images) -> torch.Tensor:
        return (functional.relu(features(images) @ projection) @ weight)[:, :seen].argmax(1)

    return work.run_plain(learn, answers, tasks)


def searched_strength(h: torch.Tensor, one_hot: torch.Tensor) -> float:
    """The best of 17 powers of ten on the last fifth of the rows, each tried by a solve."""
    cut = int(0.8 * len(h))
    gram, targets = h[:cut].T @ h[:cut], h[:cut].T @ one_hot[:cut]
    strengths, errors = 10.0 ** np.arange(-8, 9), []
    for strength in strengths:
        weight = torch.linalg.solve(gram + strength * torch.eye(len(gram)), targets)
        errors.append(functional.mse_loss(h[cut:] @ weight, one_hot[cut:]).item())
    return float(strengths[np.argmin(errors)])


def add_flags(parser) -> None:
    """Sizes of the work."""
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--random-features", type=int, default=10_000)


if __name__ == "__main__":
    pairs.main(
        __doc__,
        "ranpac with {random_features} random features, {tasks} tasks of CIFAR-100, ViT-Tiny at {image_size} pixels",
        plain,
        with_contune,
        add_flags,
    )
