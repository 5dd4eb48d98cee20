"""Experience replay: a small buffer of old examples joins every step (arXiv 1902.10486)."""

from typing import Annotated, Literal

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.head.options import LossOver
from contune.method.method import Method
from contune.rule.replay.replay import Replay


def er(
    *,
    size: Annotated[int, Replay] = 500,
    batch_size: Annotated[int, Replay] = 32,
    choice: Annotated[Literal["reservoir", "class-balanced"], Replay] = "reservoir",
    ratio: Annotated[float | None, Replay] = None,
    rank: Rank = 8,
    alpha_lora: Alpha = 16.0,
    targets: Targets = "query-value",
    loss_over: Annotated[LossOver, "mammoth's er"] = "seen",
    layers: Layers = "all",
) -> Method:
    """Keep `size` examples of finished tasks and mix `batch_size` of them into every step.

    One mean over both halves, as the paper trains on the union of the two batches. Examples enter the buffer at the end
    of their task.

    Use it first where old examples may be kept: it is simple and hard to beat. With `ratio` replayed rows are that
    share of every step instead: 0.05 where domains are near and 0.25 where they are far is what continual pretraining
    of language models takes (arXiv 2403.08763).

    Memory: the examples.
    Compute: up to twice a step.
    Defaults: ours, all of them; the loss is over all classes seen, as in the paper and in mammoth.
    Differs:
    - Replayed rows come beside the new ones and not in place of some, so that a step grows.
    - What is trained is the LoRA of method lora.

    >>> er().rules[0].name
    'replay'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    rule = Replay(size=size, batch_size=batch_size, choice=choice, ratio=ratio)
    return Method(adapter, Linear(loss_over=loss_over), (rule,), train={"lr": 2e-3, "epochs": 5})
