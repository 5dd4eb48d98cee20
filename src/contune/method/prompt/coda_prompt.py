"""CODA-Prompt: prompts assembled from components by attention, trained end to end (arXiv 2211.13218)."""

from typing import Annotated

from contune.adapter.prompt.components import PromptComponents
from contune.contract.options import LowLayers
from contune.head.linear import Linear
from contune.method.method import Method


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
    Defaults: 10 components a task (100 for 10 tasks), length 8, layers 0 to 4, orthogonality weight 0 as released.
    Differs:
    - The pool grows, so that the number of tasks need not be known.
    - The base is frozen, which the published loop misses.

    >>> coda_prompt().head.loss_over
    'own-task'
    """
    adapter = PromptComponents(
        components_per_task=components_per_task, length=length, layers=layers, orthogonality=orthogonality
    )
    train = {"optimizer": "adam", "lr": 1e-3, "schedule": "cosine", "epochs": 10}
    return Method(adapter, Linear(loss_over="own-task"), train=train)
