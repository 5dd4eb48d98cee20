"""EASE: an adapter per task, and class means in all of their subspaces (arXiv 2403.12030)."""

from typing import Annotated, Any

from contune.adapter.bottleneck.per_task import BottleneckPerTask
from contune.contract.options import Layers
from contune.head.solved.subspace_means import SubspaceMeans
from contune.method.method import Method

# The released code's gradient loop on CIFAR-100, 5 classes a task.
LOOP: dict[str, Any] = {
    "epochs": 20,
    "lr": 0.025,
    "batch_size": 48,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "clip": None,
}


def ease(
    *,
    size: Annotated[int, BottleneckPerTask] = 64,
    scale: Annotated[float, "factor of what a bottleneck adds", "released code"] = 0.1,
    dropout: Annotated[float, BottleneckPerTask, "released code"] = 0.1,
    alpha: Annotated[float, SubspaceMeans] = 0.1,
    layers: Layers = "all",
) -> Method:
    """Train fresh bottlenecks for each task, freeze them, and answer by class means in every task's features at once.

    An old class has no examples for a new adapter, so its mean there is put together from the new classes' means, by
    their similarity in the old class's own features.

    Use it for images in new classes where one forward pass per task is affordable and no old example is kept. Where
    classes repeat, as in domain-incremental streams, it gains nothing: every class belongs to the first module, and
    each later one counts for a share of `alpha` alone.

    Memory: 1.19 million weights per task in ViT-B/16 and classes x tasks x d sums.
    Compute: a backward pass through the current adapter; after training, one forward pass of the task's examples for
    each adapter so far; an answer takes one forward pass per task.
    Defaults: the released code's for CIFAR-100, where images are cropped and flipped too (set train.augment); the paper
    tunes size, alpha and the learning rate for each data set. Class means gain little where tasks have few steps.
    Differs:
    - Task sizes may be unequal and classes may come back.
    - The optional block of the unadapted model (beta, 0 by default there) is left out.

    >>> ease().head.loss_over
    'own-task'
    """
    adapter = BottleneckPerTask(size=size, scale=scale, dropout=dropout, layers=layers)
    return Method(adapter, SubspaceMeans(alpha=alpha), train=LOOP)
