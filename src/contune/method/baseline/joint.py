"""Joint training: all tasks at once, the upper bound that continual learning is measured against."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Dropout, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.method.method import Method


def joint(
    *,
    rank: Rank = 8,
    alpha: Alpha = 16.0,
    dropout: Dropout = 0.0,
    targets: Targets = "query-value",
    layers: Layers = "all",
) -> Method:
    """Train the same LoRA as method lora on the data of all tasks together.

    No continual learning: it sees every task at once, by declaration.

    Use it as the upper bound: what a method loses against it is the price of learning one task after the other.

    Memory: as lora, and the data of all tasks.
    Compute: a step as that of lora.
    Defaults: those of lora, so ours; one pass over all tasks has as many steps as lora takes over the stream.

    >>> joint().joint
    True
    """
    adapter = lora_adapter(rank=rank, alpha=alpha, dropout=dropout, targets=targets, layers=layers)
    return Method(adapter, Linear(), joint=True, train={"lr": 2e-3, "epochs": 5})
