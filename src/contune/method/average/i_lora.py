"""I-LoRA: a LoRA that learns with rehearsal, and a slow running mean of it that answers (arXiv 2402.18865)."""

from typing import Literal

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.average.ema_teacher import EmaTeacher


def i_lora(
    *,
    decay: float = 0.99,
    weight: float = 1.0,
    target: Literal["slow", "larger"] = "slow",
    size: int = 500,
    batch_size: int | None = None,
    rank: int = 8,
    alpha_lora: float = 32.0,
    dropout: float = 0.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Train one LoRA on each task and on `size` old examples, keep it near a slow copy of itself, answer with the copy.

    After every step the slow copy takes over a share 1 - `decay` of the fast one, and what both make of rehearsed examples,
    layer by layer, is pulled together. Memory: a second copy of what is trained, a third between tasks, and the examples.
    Compute: up to twice a step for the rehearsed half, and two more forward passes on it.

    Differs: the released code's average reads and writes the fast LoRA alone, so its slow one never moves; here it does.
    That code's `decay` of 0.25 would keep little more than the last two steps, so 0.99 is the default, over a plain mean
    in the first hundred steps; where a task has fewer than some hundred steps, give less. The distance is the paper's,
    two-sided; `target: larger` is the code's. Examples are kept at the end of their task and not before they are first
    drawn; padding counts nowhere. A head of classes is averaged with the LoRA, as its scores are of the same features.
    LoRA on queries and values, the released code's also on keys and outputs (`targets: all-linear` adds those and the MLP).

    >>> i_lora().rules[0].name
    'ema-teacher'
    """
    rule = EmaTeacher(decay=decay, weight=weight, target=target, size=size, batch_size=batch_size)
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, dropout=dropout, targets=targets, layers=layers)
    return Method(adapter, Linear(), (rule,), train={"lr": 2e-3, "epochs": 5})
