"""Static ConPET: one LoRA and replay of all old tasks at a cost that does not grow with them (arXiv 2309.14763)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.replay.task_replay import TaskReplay

# Epochs, decay and clipping of the paper, which has 80 to 2000 batches of 8 or 16 rows in an epoch.
LOOP = {"epochs": 10, "batches": 20, "batch_size": 16, "lr": 2e-3, "weight_decay": 0.01, "clip": 1.0}


def conpet_static(
    *,
    ratio: Annotated[float, TaskReplay] = 1.0,
    size: Annotated[int | None, TaskReplay] = None,
    rank: Annotated[Rank, "paper"] = 4,
    alpha: Alpha = 8.0,
    targets: Targets = "query-value",
    layers: Layers = "all",
) -> Method:
    """Train one LoRA in `train.batches` steps an epoch for every task, each with as many old rows as new.

    Old rows come from a uniformly chosen old task.

    Use it where old examples may be kept but the time to learn a task must not grow with their number; a `size` bounds
    what is kept as well.

    Memory: the examples of finished tasks.
    Compute: a step of `batch_size` new rows and `batch_size` / `ratio` old ones, the same number in every task.
    Defaults: rank 4, ratio 1, weight decay 0.01, clipping at 1 and 10 epochs as in the paper, which sets batches and
    rate for each data set (80 to 2000 that train, 2e-5 to 2e-3); 20 batches are for small tasks.
    Differs:
    - This is the plain form, EMR's, with random in place of clustered memory; EA-EMR and CRL are not here.
    - The first task has the same number of steps, where the paper takes all of its examples.
    - `batch_size` counts the new rows, which are drawn in passes over the task, so that each comes as often as any
      other.
    - Rates do not drop at a task known beforehand; nothing is held out for validation.

    >>> conpet_static().rules[0].name
    'task-replay'
    """
    adapter = lora(rank=rank, alpha=alpha, targets=targets, layers=layers)
    return Method(adapter, Linear(), (TaskReplay(ratio=ratio, size=size),), train=LOOP)
