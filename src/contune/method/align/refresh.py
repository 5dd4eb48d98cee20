"""Refresh learning on a replay method: unlearn each batch a little, then learn it (arXiv 2403.13249)."""

from typing import Literal

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.parts import Rule
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.align.refresh import Refresh
from contune.rule.replay.der import DarkExperience
from contune.rule.replay.replay import Replay


def refresh(
    *,
    delta: float = 1e-5,
    noise: float = 1e-3,
    decay: float = 1e-5,
    examples: int = 200,
    host: Literal["der++", "er"] = "der++",
    size: int = 500,
    batch_size: int = 32,
    alpha: float = 0.1,
    beta: float = 0.5,
    rank: int = 8,
    alpha_lora: float = 16.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Before every step of DER++ (or ER) move what is trained up the loss of the batch, by a tiny share of its norm.

    Memory: as the host, plus one value per trained entry. Compute: one more forward and backward pass a step, and
    `examples` passes a task. delta, noise and decay are the released code's. Differs: moves come before the step, as the
    paper writes, not after it; the Fisher information is taken of `examples` examples; the carrier is LoRA. alpha and
    beta are those of DER++.

    >>> [rule.name for rule in refresh().rules]
    ['refresh', 'der++']
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    replay: Rule = (
        DarkExperience(size=size, batch_size=batch_size, alpha=alpha, beta=beta)
        if host == "der++"
        else Replay(size=size, batch_size=batch_size)
    )
    rule = Refresh(delta=delta, noise=noise, decay=decay, examples=examples)
    return Method(adapter, Linear(), (rule, replay), train={"lr": 2e-3, "epochs": 5})
