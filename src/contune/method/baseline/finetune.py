"""Full fine-tuning of the whole model, task after task: the classic baseline that forgets."""

from typing import Annotated

from contune.adapter.weights.subset import full
from contune.head.linear import Linear
from contune.head.options import LossOver
from contune.method.method import Method


def finetune(
    *,
    lr_scale: Annotated[float, full] = 0.01,
    loss_over: Annotated[LossOver, "LAMDA-PILOT's finetune"] = "own-task",
) -> Method:
    """Train every weight on each task in turn, with nothing to protect the past.

    Use it as the classic baseline that forgets: what a method is worth shows beside it. With `lr_scale` 1 model and
    head learn alike.

    Memory: the optimizer's two copies of the model.
    Compute: a full backward pass.
    Defaults: the model learns at a hundredth of the head's rate (SLCA, arXiv 2303.05118, section 3.2); rate and epochs
    are ours. The loss is over the task's own classes as in LAMDA-PILOT; `seen`, as in mammoth, turns every old class
    away and forgets more.

    >>> finetune().adapter.name
    'full'
    """
    return Method(full(lr_scale=lr_scale), Linear(loss_over=loss_over), train={"lr": 1e-2, "epochs": 5})
