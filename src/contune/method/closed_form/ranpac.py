"""RanPAC: ridge regression on random features of a frozen model (arXiv 2307.02251)."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.adapter.none import NoAdapter
from contune.head.ridge import Ridge
from contune.method.method import Method


def ranpac(
    *, random_features: int = 2000, strength: float | None = None, first_task: bool = False, rank: int = 8
) -> Method:
    """Sum second-order statistics of relu(f(x) W) over all tasks and solve for the head exactly.

    Memory: M x M + M x classes in float64 for M random features (the paper: M = 10,000). Compute: one forward pass over
    every example, one Cholesky a task. `strength` None searches 17 powers of ten on a seeded fifth of each task's
    training features (the paper uses the loader's order); with a number the result is independent of task order.
    `first_task` trains a LoRA on the first task and then rests it (the paper: AdaptFormer, SSF or VPT by data set).
    Differs: classes grow as they come, where the official code must know their number; float64 throughout.

    >>> ranpac(first_task=True).adapt
    'first-task'
    """
    adapter = lora_adapter(rank=rank) if first_task else NoAdapter()
    head = Ridge(random_features=random_features, strength=strength)
    return Method(adapter, head, adapt="first-task", train={"lr": 2e-3, "epochs": 5 if first_task else 0})
