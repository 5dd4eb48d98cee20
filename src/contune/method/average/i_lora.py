"""I-LoRA: a LoRA that learns with rehearsal, and a slow running mean of it that answers (arXiv 2402.18865)."""

from typing import Annotated, Literal

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Dropout, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.average.ema_teacher import EmaTeacher


def i_lora(
    *,
    decay: Annotated[float, EmaTeacher] = 0.99,
    weight: Annotated[float, EmaTeacher] = 1.0,
    target: Annotated[Literal["slow", "larger"], EmaTeacher] = "slow",
    size: Annotated[int, EmaTeacher] = 500,
    batch_size: Annotated[int | None, EmaTeacher] = None,
    rank: Rank = 8,
    alpha_lora: Alpha = 32.0,
    dropout: Dropout = 0.0,
    targets: Targets = "query-value",
    layers: Layers = "all",
) -> Method:
    """Train one LoRA on each task and on `size` old examples, keep it near a slow copy of itself, answer with the copy.

    After every step the slow copy takes over a share 1 - `decay` of the fast one, and what both make of rehearsed
    examples, layer by layer, is pulled together.

    Use it where a few old examples may be kept and many small steps follow one another; where a task has fewer than
    some hundred steps, lower `decay`, or the slow copy lags behind.

    Memory: a second copy of what is trained, a third between tasks, and the examples.
    Compute: up to twice a step for the rehearsed half, and two more forward passes on it.
    Defaults: weight 1 and 500 examples as released. The released `decay` of 0.25 would keep little more than the last
    two steps, so it is 0.99 here, over a plain mean in the first hundred steps; rate and epochs are ours.
    Differs:
    - The released code's average reads and writes the fast LoRA alone, so its slow one never moves; here it does.
    - The distance is the paper's, two-sided; `target: larger` is the code's.
    - Examples are kept at the end of their task and not before they are first drawn; padding counts nowhere.
    - A head of classes is averaged with the LoRA, as its scores are of the same features.
    - LoRA on queries and values, the released code's also on keys and outputs (`targets: all-linear` adds those and the
      MLP).

    >>> i_lora().rules[0].name
    'ema-teacher'
    """
    rule = EmaTeacher(decay=decay, weight=weight, target=target, size=size, batch_size=batch_size)
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, dropout=dropout, targets=targets, layers=layers)
    return Method(adapter, Linear(), (rule,), train={"lr": 2e-3, "epochs": 5})
