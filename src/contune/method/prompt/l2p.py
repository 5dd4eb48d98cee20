"""L2P: a pool of prompts, chosen by matching keys to a query (arXiv 2112.08654)."""

from typing import Annotated

from contune.adapter.prompt.pool import PromptPool
from contune.head.linear import Linear
from contune.method.method import Method


def l2p(
    *,
    pool: Annotated[int, PromptPool] = 10,
    length: Annotated[int, PromptPool] = 5,
    top: Annotated[int, PromptPool] = 5,
    pull: Annotated[float, PromptPool] = 0.1,
) -> Method:
    """Train a fixed pool of prompts with keys; every input takes the prompts nearest to its frozen feature.

    The loss is over the task's own classes, which alone protects old head rows.

    Use it where what is kept must not grow with the tasks, as it does in dualprompt and coda-prompt.

    Memory: pool x (length + 1) x d and the head, whatever the number of tasks.
    Compute: a full backward pass; the query is computed once per example and kept.
    Defaults: length 5, top 5, pull 0.1 of the PyTorch port; learning rate and epochs suit small data.
    Differs:
    - Every input chooses for itself (no vote over the batch, in training or prediction).
    - On text the prompts pass through the model's position embedding, like prompt tuning.

    >>> l2p().adapter.name
    'prompt-pool'
    """
    train = {"optimizer": "adam", "lr": 5e-3, "epochs": 5}
    return Method(PromptPool(pool=pool, length=length, top=top, pull=pull), Linear(loss_over="own-task"), train=train)
