"""L2: pull the trained weights towards where the last task left them (arXiv 2203.17269)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.head.options import LossOver
from contune.method.method import Method
from contune.rule.anchor.anchor import L2 as L2Rule


def l2(
    *,
    strength: Annotated[float, L2Rule] = 0.01,
    rank: Rank = 8,
    alpha_lora: Alpha = 16.0,
    targets: Targets = "query-value",
    loss_over: Annotated[LossOver, "the paper's FT++"] = "own-task",
    layers: Layers = "all",
) -> Method:
    """Hold what is trained to where the last task left it, every weight alike.

    The penalty is strength times the squared distance.

    Use it as the simplest protection without old examples, and as what ewc and mas have to beat.

    Memory: the trained tensors once more.
    Compute: one sum a step.
    Defaults: strength, the LoRA, rate and epochs are ours; the paper's strength comes from a sweep. The loss is over
    the task's own classes, the paper's FT++.
    Differs:
    - Old head rows are anchored with the adapter, where the paper anchors the feature extractor alone.
    - What is trained is the LoRA of method lora; `rehearsal-free` is nearer to the paper.

    >>> l2().rules[0].name
    'l2'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    return Method(adapter, Linear(loss_over=loss_over), (L2Rule(strength=strength),), train={"lr": 2e-3, "epochs": 5})
