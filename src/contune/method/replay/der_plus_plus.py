"""DER++: replay that also matches the logits of old examples (arXiv 2004.07211)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.head.options import LossOver
from contune.method.method import Method
from contune.rule.replay.der import DarkExperience

NAME = "der++"


def der_plus_plus(
    *,
    size: Annotated[int, DarkExperience] = 500,
    batch_size: Annotated[int, DarkExperience] = 32,
    alpha: Annotated[float, DarkExperience] = 0.1,
    beta: Annotated[float, DarkExperience] = 0.5,
    rank: Rank = 8,
    alpha_lora: Alpha = 16.0,
    targets: Targets = "query-value",
    loss_over: Annotated[LossOver, "the paper's code, mammoth"] = "seen",
    layers: Layers = "all",
) -> Method:
    """Keep `size` old examples with their logits; match the logits on one draw and the labels on another.

    Use it where old examples may be kept: it says more of the old model than er does, at the price of their logits.

    Memory: the examples and their logits.
    Compute: up to three times a step.
    Defaults: alpha 0.1 and beta 0.5 are typical of the paper's table of settings; size, batch, the LoRA and the loop
    are ours. The loss is over all classes seen, as in the paper's code.
    Differs:
    - Logits are taken at the end of the example's task, in the deterministic view, not when it is first learned.
    - What is trained is the LoRA of method lora.

    >>> der_plus_plus().rules[0].name
    'der++'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    return Method(
        adapter,
        Linear(loss_over=loss_over),
        (DarkExperience(size=size, batch_size=batch_size, alpha=alpha, beta=beta),),
        train={"lr": 2e-3, "epochs": 5},
    )
