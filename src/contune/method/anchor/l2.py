"""L2: pull the trained weights towards where the last task left them (arXiv 2203.17269)."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.anchor.anchor import L2 as L2Rule


def l2(
    *,
    strength: float = 0.01,
    rank: int = 8,
    alpha_lora: float = 16.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Add strength * squared distance of the trained weights to those at the end of the last task.

    Memory: the trained tensors once more. Compute: one sum a step. Old head rows are anchored with the adapter, where the
    paper anchors the feature extractor alone.

    The adapter is the LoRA of method `lora`.

    >>> l2().rules[0].name
    'l2'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    return Method(adapter, Linear(), (L2Rule(strength=strength),), train={"lr": 2e-3, "epochs": 5})
