"""MAS: pull important weights back, importance by how much they move the output (arXiv 1711.09601)."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.anchor.anchor import MAS


def mas(
    *,
    strength: float = 1.0,
    examples: int = 200,
    rank: int = 8,
    alpha_lora: float = 16.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Add strength * sum Omega (theta - theta*)^2 where Omega is the mean gradient size of the squared output norm.

    Memory: the trained tensors twice more. Compute: `examples` backward passes a task. Needs no labels.

    The adapter is the LoRA of method `lora`.

    >>> mas().rules[0].name
    'mas'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    return Method(adapter, Linear(), (MAS(strength=strength, examples=examples),), train={"lr": 2e-3, "epochs": 5})
