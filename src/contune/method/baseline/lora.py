"""Sequential LoRA: one low-rank update for the whole stream, with nothing to protect the past."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.head.linear import Linear
from contune.method.method import Method


def lora(
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Train one LoRA (arXiv 2106.09685) and a growing head on each task in turn; what most people do, and it forgets.

    Memory: rank (d_in + d_out) per wrapped matrix. Compute: a backward pass down to the lowest wrapped layer.

    >>> lora(rank=4).adapter.name
    'lora'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha, dropout=dropout, targets=targets, layers=layers)
    return Method(adapter, Linear(), train={"lr": 2e-3, "epochs": 5})
