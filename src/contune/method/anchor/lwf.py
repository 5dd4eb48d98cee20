"""Learning without forgetting: the old model teaches on the new data (arXiv 1606.09282)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.anchor.distillation import Distillation


def lwf(
    *,
    weight: Annotated[float, Distillation] = 1.0,
    temperature: Annotated[float, Distillation] = 2.0,
    rank: Rank = 8,
    alpha_lora: Alpha = 16.0,
    targets: Targets = "query-value",
    layers: Layers = "all",
) -> Method:
    """Keep the old classes' scores on new examples near those of the model before the task.

    Use it where no old example may be kept and new examples look enough like old ones to remind the model of them.

    Memory: the trained tensors once more.
    Compute: one more forward pass a step.
    Defaults: weight 1 and temperature 2 as in the paper.
    Differs:
    - What is trained is the LoRA of method lora.

    >>> lwf().rules[0].name
    'distillation'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    return Method(
        adapter, Linear(), (Distillation(weight=weight, temperature=temperature),), train={"lr": 2e-3, "epochs": 5}
    )
