"""SD-LoRA: directions of finished tasks are frozen, their magnitudes go on learning (arXiv 2501.13198)."""

from typing import Annotated, Literal

from contune.adapter.lora.sd_lora import SdLora
from contune.contract.options import Layers, Targets
from contune.head.linear import Linear
from contune.method.method import Method


def sd_lora(
    *,
    rank: Annotated[int, SdLora] = 10,
    magnitude: Annotated[float, SdLora] = 0.8,
    magnitudes: Annotated[Literal["restart", "carry"], SdLora] = "restart",
    targets: Annotated[Targets, "paper"] = "query-value",
    layers: Layers = "all",
) -> Method:
    """Sum one LoRA per task, each finished one as a direction of size 1 times a magnitude that later tasks still train.

    Use it for images in new classes without old examples, where later tasks should profit from earlier directions.

    Memory: rank (d_in + d_out) per wrapped matrix and task, one number per task.
    Compute: as lora; old tasks cost one more low-rank product however many there are, of rank `rank` x tasks.
    Defaults: rank 10, magnitude 0.8, and SGD with momentum 0.9 of the released code for CIFAR-100; 5 epochs are ours
    and fewer. The loss is over the task's own classes.
    Differs:
    - As the released code, one magnitude per task for all layers, and all of them start again with every task unless
      `magnitudes` is carry.
    - The variants with falling ranks and with absorbed directions are left out.

    >>> sd_lora().adapter.name
    'sd-lora'
    """
    adapter = SdLora(rank=rank, magnitude=magnitude, magnitudes=magnitudes, targets=targets, layers=layers)
    train = {"optimizer": "sgd", "momentum": 0.9, "lr": 8e-3, "batch_size": 128, "epochs": 5, "clip": None}
    return Method(adapter, Linear(loss_over="own-task"), train=train)
