"""Static ConPET: one LoRA and replay of all old tasks at a cost that does not grow with them (arXiv 2309.14763)."""

from contune.adapter.lora.peft_adapter import lora
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.replay.task_replay import TaskReplay

# Epochs, decay and clipping of the paper, which has 80 to 2000 batches of 8 or 16 rows in an epoch.
LOOP = {"epochs": 10, "batches": 20, "batch_size": 16, "lr": 2e-3, "weight_decay": 0.01, "clip": 1.0}


def conpet_static(
    *,
    ratio: float = 1.0,
    size: int | None = None,
    rank: int = 4,
    alpha: float = 8.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Train one LoRA in `train.batches` steps an epoch for every task, each with as many old rows as new (`ratio` 1).

    Old rows come from a uniformly chosen old task. The paper keeps all old examples and bounds only the cost of training; a
    number as `size` bounds both. Memory: the examples of finished tasks. Compute: a step of `batch_size` new rows and
    `batch_size` / `ratio` old ones, the same number in every task. Defaults: rank 4, ratio 1, weight decay 0.01, clipping at
    1 and 10 epochs as in the paper, which sets batches and rate for each data set (80 to 2000 that train, 2e-5 to 2e-3); 20
    batches are for small tasks.

    Differs: this is the plain form, EMR's, with random in place of clustered memory; EA-EMR and CRL are not here. The first
    task has the same number of steps, where the paper takes all of its examples. `batch_size` counts the new rows, which
    are drawn in passes over the task, so that each comes as often as any other; rates do not drop at a task known
    beforehand; nothing is held out for validation.

    >>> conpet_static().rules[0].name
    'task-replay'
    """
    adapter = lora(rank=rank, alpha=alpha, targets=targets, layers=layers)
    return Method(adapter, Linear(), (TaskReplay(ratio=ratio, size=size),), train=LOOP)
