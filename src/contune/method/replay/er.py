"""Experience replay: a small buffer of old examples joins every step (arXiv 1902.10486)."""

from typing import Literal

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.replay.replay import Replay


def er(
    *,
    size: int = 500,
    batch_size: int = 32,
    choice: Literal["reservoir", "class-balanced"] = "reservoir",
    ratio: float | None = None,
    rank: int = 8,
    alpha_lora: float = 16.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Keep `size` examples of finished tasks and mix `batch_size` of them into every step.

    With `ratio` replayed rows are that share of every step instead: 0.05 where domains are near and 0.25 where they are far
    is what continual pretraining of language models takes (arXiv 2403.08763). Differs there: replayed rows come beside
    the new ones and not in place of some, so that a step grows.

    One mean over both halves, as the paper trains on the union of the two batches. Memory: the examples. Compute: up to
    twice a step. Examples enter the buffer at the end of their task.

    The adapter is the LoRA of method `lora`.

    >>> er().rules[0].name
    'replay'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    rule = Replay(size=size, batch_size=batch_size, choice=choice, ratio=ratio)
    return Method(adapter, Linear(), (rule,), train={"lr": 2e-3, "epochs": 5})
