"""Full fine-tuning of the whole model, task after task: the classic baseline that forgets."""

from typing import Annotated

from contune.adapter.weights.subset import full
from contune.head.linear import Linear
from contune.method.method import Method


def finetune(
    *,
    lr_scale: Annotated[float, full] = 0.01,
) -> Method:
    """Train every weight on each task in turn, with nothing to protect the past.

    Use it as the classic baseline that forgets: what a method is worth shows beside it. With `lr_scale` 1 model and
    head learn alike.

    Memory: the optimizer's two copies of the model.
    Compute: a full backward pass.
    Defaults: the model learns at a hundredth of the head's rate (SLCA, arXiv 2303.05118, section 3.2).

    >>> finetune().adapter.name
    'full'
    """
    return Method(full(lr_scale=lr_scale), Linear(), train={"lr": 1e-2, "epochs": 5})
