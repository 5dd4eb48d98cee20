"""DER++: replay that also matches the logits of old examples (arXiv 2004.07211)."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.replay.der import DarkExperience

NAME = "der++"


def der_plus_plus(
    *,
    size: int = 500,
    batch_size: int = 32,
    alpha: float = 0.1,
    beta: float = 0.5,
    rank: int = 8,
    alpha_lora: float = 16.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Keep `size` old examples with their logits; match the logits on one draw and the labels on another.

    alpha 0.1 and beta 0.5 are typical of the paper's table of settings. Memory: the examples and their logits.
    Compute: up to three times a step. Differs: logits are taken at the end of the example's task, in the deterministic view.

    The adapter is the LoRA of method `lora`.

    >>> der_plus_plus().rules[0].name
    'der++'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    return Method(
        adapter,
        Linear(),
        (DarkExperience(size=size, batch_size=batch_size, alpha=alpha, beta=beta),),
        train={"lr": 2e-3, "epochs": 5},
    )
