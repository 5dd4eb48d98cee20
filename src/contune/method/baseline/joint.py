"""Joint training: all tasks at once, the upper bound that continual learning is measured against."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.head.linear import Linear
from contune.method.method import Method


def joint(
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Train the same LoRA as `lora` on the data of all tasks together.

    No continual learning: it sees every task at once, by declaration. Memory and compute per step as `lora`.

    >>> joint().joint
    True
    """
    adapter = lora_adapter(rank=rank, alpha=alpha, dropout=dropout, targets=targets, layers=layers)
    return Method(adapter, Linear(), joint=True, train={"lr": 2e-3, "epochs": 5})
