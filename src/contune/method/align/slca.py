"""SLCA: a slow learner with classifier alignment (arXiv 2303.05118)."""

from typing import Annotated

from contune.adapter.weights.subset import full
from contune.head.linear import Linear
from contune.method.method import Method
from contune.method.options import of
from contune.rule.align.alignment import Alignment
from contune.rule.align.statistics import Form


def slca(
    *,
    lr_scale: Annotated[float, full] = 0.01,
    alignment_epochs: Annotated[int, of(Alignment, "epochs")] = 5,
    samples: Annotated[int, Alignment] = 256,
    alignment_lr: Annotated[float, of(Alignment, "lr")] = 0.01,
    shrink: Annotated[float, Alignment] = 0.9,
    temperature: Annotated[float, "divides normed scores in the alignment, above 0", "released code"] = 0.1,
    form: Annotated[Form, Alignment] = "full",
    rank: Annotated[int, Alignment] = 8,
) -> Method:
    """Train the whole model slowly on each task's own classes, then the head on Gaussian samples of all classes.

    The alignment is undone before the next task, so that it never becomes what the model learns from.

    Use it where the whole model may change, old examples may not be kept, and statistics of their features may.

    Memory: d^2 values per class (`form` low-rank: rank x d, diagonal: d), the head once more, and the whole model,
    which replaces the base.
    Compute: a full backward pass, then `alignment_epochs` x classes head steps.
    Defaults: the released code's: rates 0.01 and 0.0001 with SGD, weight decay 5e-4, batch 128, means shrunk to 0.9,
    head rows that start normal with a deviation of 0.02; 5 epochs are ours.
    Differs:
    - 5 epochs with a rate that falls as a cosine, where the released code takes 20 to 50 with a rate that falls in
      steps.
    - A class that comes back keeps one Gaussian for each time it came.

    >>> slca().rules[0].name
    'alignment'
    """
    rule = Alignment(
        epochs=alignment_epochs,
        samples=samples,
        lr=alignment_lr,
        shrink=shrink,
        temperature=temperature,
        form=form,
        rank=rank,
    )
    train = {
        "optimizer": "sgd",
        "lr": 0.01,
        "weight_decay": 5e-4,
        "batch_size": 128,
        "epochs": 5,
        "schedule": "cosine",
        "clip": None,
    }
    return Method(full(lr_scale=lr_scale), Linear(loss_over="own-task", start_spread=0.02), (rule,), train=train)
