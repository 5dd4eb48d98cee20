"""Sequential LoRA: one low-rank update for the whole stream, with nothing to protect the past."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Dropout, Layers, Rank, Stacks, Targets
from contune.head.linear import Linear
from contune.head.options import LossOver
from contune.method.method import Method


def lora(
    *,
    rank: Rank = 8,
    alpha: Alpha = 16.0,
    dropout: Dropout = 0.0,
    targets: Annotated[Targets, "paper, section 7.1"] = "query-value",
    layers: Layers = "all",
    stacks: Stacks = "both",
    loss_over: Annotated[LossOver, "LAMDA-PILOT's finetune"] = "own-task",
) -> Method:
    """Train one LoRA (arXiv 2106.09685) and a growing head on each task in turn; what most people do, and it forgets.

    Use it as the baseline of every method that trains a LoRA.

    Memory: rank (d_in + d_out) per wrapped matrix.
    Compute: a backward pass down to the lowest wrapped layer.
    Defaults: rank, alpha, rate and epochs are ours, queries and values the paper's choice. The loss is over the task's
    own classes as in LAMDA-PILOT's finetune; `seen` turns every old class away and forgets more.

    >>> lora(rank=4).adapter.name
    'lora'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha, dropout=dropout, targets=targets, layers=layers, stacks=stacks)
    return Method(adapter, Linear(loss_over=loss_over), train={"lr": 2e-3, "epochs": 5})
