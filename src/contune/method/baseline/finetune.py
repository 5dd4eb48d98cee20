"""Full fine-tuning of the whole model, task after task: the classic baseline that forgets."""

from contune.adapter.weights.subset import full
from contune.head.linear import Linear
from contune.method.method import Method


def finetune(*, lr_scale: float = 0.01) -> Method:
    """Train every weight on each task in turn, with nothing to protect the past.

    Memory: the optimizer's two copies of the model. Compute: a full backward pass. The backbone learns at `lr_scale`
    times the head's rate (SLCA, arXiv 2303.05118, section 3.2); with 1.0 both learn alike.

    >>> finetune().adapter.name
    'full'
    """
    return Method(full(lr_scale=lr_scale), Linear(), train={"lr": 1e-2, "epochs": 5})
