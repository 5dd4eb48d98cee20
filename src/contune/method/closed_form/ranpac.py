"""RanPAC: ridge regression on random features of a frozen model (arXiv 2307.02251)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.adapter.none import NoAdapter
from contune.head.solved.ridge import Ridge
from contune.method.method import Method


def ranpac(
    *,
    random_features: Annotated[int, Ridge, "ours; paper: 10,000"] = 2000,
    strength: Annotated[float | None, Ridge] = None,
    first_task: Annotated[bool, "train a LoRA on the first task, which rests from then on"] = False,
    rank: Annotated[int, "rank of that LoRA, from 1"] = 8,
) -> Method:
    """Sum second-order statistics of relu(f(x) W) over all tasks and solve for the head exactly.

    With a number as `strength` the result is independent of task order.

    Use it where features of the frozen model are good and class means too simple for them.

    Memory: M x M + M x classes in float64 for M random features.
    Compute: one forward pass over every example, one Cholesky a task.
    Defaults: 2,000 random features for small machines, where the paper has 10,000. The strength is searched among 17
    powers of ten on a seeded fifth of each task's training features, where the paper uses the loader's order.
    Differs:
    - With `first_task` the adapter is a LoRA; the paper takes AdaptFormer, SSF or VPT by data set.
    - Classes grow as they come, where the official code must know their number.
    - Float64 throughout.

    >>> ranpac(first_task=True).adapt
    'first-task'
    """
    adapter = lora_adapter(rank=rank) if first_task else NoAdapter()
    head = Ridge(random_features=random_features, strength=strength)
    return Method(adapter, head, adapt="first-task", train={"lr": 2e-3, "epochs": 5 if first_task else 0})
