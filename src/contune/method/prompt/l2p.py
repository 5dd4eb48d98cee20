"""L2P: a pool of prompts, chosen by matching keys to a query (arXiv 2112.08654)."""

from typing import Annotated, Any

from contune.adapter.prompt.pool import PromptPool, Start
from contune.head.linear import Linear
from contune.method.method import Method

# The gradient loop of the PyTorch port on CIFAR-100; the rate is 0.03 x batch / 256, as in the official code.
LOOP: dict[str, Any] = {"epochs": 5, "lr": 0.03 * 16 / 256, "batch_size": 16, "optimizer": "adam", "clip": 1.0}


def l2p(
    *,
    pool: Annotated[int, PromptPool] = 10,
    length: Annotated[int, PromptPool] = 5,
    top: Annotated[int, PromptPool] = 5,
    pull: Annotated[float, PromptPool] = 0.1,
    start: Annotated[Start, PromptPool] = "narrow",
) -> Method:
    """Train a fixed pool of prompts with keys; every input takes the prompts nearest to its frozen feature.

    The loss is over the task's own classes, which alone protects old head rows.

    Use it where what is kept must not grow with the tasks, as it does in dualprompt and coda-prompt.

    Memory: pool x (length + 1) x d and the head, whatever the number of tasks.
    Compute: a full backward pass; the query is computed once per example and kept.
    Defaults: length 5, top 5, pull 0.1 and the loop of the PyTorch port, for CIFAR-100, where images are cropped and
    flipped too (set train.augment); the official code has length 10, top 4, pull 1 and batches of 128. Prompts, keys and
    a head at zero start as in the official code: with head rows drawn as torch's linear layers are, the noise of the draw
    costs ten points after a task of 114 steps.
    Differs:
    - Every input chooses for itself (no vote over the batch, in training or prediction).
    - On images prompts have no position, as in the official code; the port gives them that of the class token. On text
      they pass through the model's position embedding, like prompt tuning.

    >>> l2p().adapter.name
    'prompt-pool'
    """
    adapter = PromptPool(pool=pool, length=length, top=top, pull=pull, start=start)
    return Method(adapter, Linear(loss_over="own-task", start_spread=0.0), train=LOOP)
