"""CODA-Prompt: prompts assembled from components by attention, trained end to end (arXiv 2211.13218)."""

from typing import Annotated, Any

from contune.adapter.prompt.components import PromptComponents
from contune.contract.options import LowLayers
from contune.head.linear import Linear
from contune.method.method import Method

# The released code's gradient loop on CIFAR-100.
LOOP: dict[str, Any] = {
    "epochs": 20,
    "lr": 1e-3,
    "batch_size": 128,
    "optimizer": "adam",
    "schedule": "quarter-cosine",
    "clip": None,
}


def coda_prompt(
    *,
    components_per_task: Annotated[int, PromptComponents] = 10,
    length: Annotated[int, PromptComponents] = 8,
    layers: Annotated[LowLayers, "released code"] = "lowest-five",
    orthogonality: Annotated[float, PromptComponents] = 0.0,
) -> Method:
    """Give each task new prompt components, keys and attention vectors, orthogonal to the frozen earlier ones.

    Use it for images in new classes without old examples, where the frozen model must stay as it is.

    Memory: tasks x components_per_task x (length + 2) x d per layer.
    Compute: a full backward pass; the query is computed once per example and kept.
    Defaults: 10 components a task (100 for 10 tasks), length 8, layers 0 to 4, orthogonality weight 0 and the gradient
    loop as released for CIFAR-100: 20 epochs in batches of 128, Adam at 0.001 that falls along a quarter of a cosine,
    no clipping; images are cropped and flipped there too (set train.augment). That makes 800 steps of a task of 5,000
    images; where tasks are small, smaller batches learn more.
    Differs:
    - The pool grows, so that the number of tasks need not be known.
    - The learning rate falls with every step, there with every epoch.

    >>> coda_prompt().head.loss_over
    'own-task'
    """
    adapter = PromptComponents(
        components_per_task=components_per_task, length=length, layers=layers, orthogonality=orthogonality
    )
    return Method(adapter, Linear(loss_over="own-task"), train=LOOP)
