"""Learning without forgetting: the old model teaches on the new data (arXiv 1606.09282)."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.anchor.distillation import Distillation


def lwf(
    *,
    weight: float = 1.0,
    temperature: float = 2.0,
    rank: int = 8,
    alpha_lora: float = 16.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Keep the old classes' scores on new examples near those of the model before the task.

    Memory: the trained tensors once more. Compute: one more forward pass a step. Temperature 2 as in the paper.

    The adapter is the LoRA of method `lora`.

    >>> lwf().rules[0].name
    'distillation'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    return Method(
        adapter, Linear(), (Distillation(weight=weight, temperature=temperature),), train={"lr": 2e-3, "epochs": 5}
    )
