"""EWC: pull important weights back, importance by Fisher information (arXiv 1612.00796)."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.anchor.anchor import EWC


def ewc(
    *,
    strength: float = 100.0,
    examples: int = 200,
    rank: int = 8,
    alpha_lora: float = 16.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Add strength / 2 * sum F (theta - theta*)^2 with the Fisher information of single examples.

    Memory: the trained tensors twice more. Compute: `examples` backward passes a task. One running anchor (online EWC).

    The adapter is the LoRA of method `lora`.

    >>> ewc().rules[0].name
    'ewc'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    return Method(adapter, Linear(), (EWC(strength=strength, examples=examples),), train={"lr": 2e-3, "epochs": 5})
