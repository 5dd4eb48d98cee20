"""Sequential LoRA: one low-rank update for the whole stream, with nothing to protect the past."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Dropout, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.method.method import Method


def lora(
    *,
    rank: Rank = 8,
    alpha: Alpha = 16.0,
    dropout: Dropout = 0.0,
    targets: Annotated[Targets, "paper, section 7.1"] = "query-value",
    layers: Layers = "all",
) -> Method:
    """Train one LoRA (arXiv 2106.09685) and a growing head on each task in turn; what most people do, and it forgets.

    Use it as the baseline of every method that trains a LoRA.

    Memory: rank (d_in + d_out) per wrapped matrix.
    Compute: a backward pass down to the lowest wrapped layer.
    Defaults: rank and alpha are ours, queries and values the paper's choice.

    >>> lora(rank=4).adapter.name
    'lora'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha, dropout=dropout, targets=targets, layers=layers)
    return Method(adapter, Linear(), train={"lr": 2e-3, "epochs": 5})
