"""SLCA: a slow learner with classifier alignment (arXiv 2303.05118)."""

from contune.adapter.weights.subset import full
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.align.alignment import Alignment
from contune.rule.align.statistics import Form


def slca(
    *,
    lr_scale: float = 0.01,
    alignment_epochs: int = 5,
    samples: int = 256,
    alignment_lr: float = 0.01,
    shrink: float = 0.9,
    temperature: float = 0.1,
    form: Form = "full",
    rank: int = 8,
) -> Method:
    """Train the whole model slowly on each task's own classes, then the head on Gaussian samples of all classes.

    The alignment is undone before the next task. Memory: d^2 values per class (`form` `low-rank`: rank x d, `diagonal`:
    d), the head once more, and the whole model, which replaces the base. Compute: a full backward pass, then
    `alignment_epochs` x classes head steps. Defaults: rates 0.01 and 0.0001 with SGD, weight decay 5e-4, batch 128 and the
    means shrunk to 0.9 are the released code's; they take 20 to 50 epochs and a multi-step rate, here 5 and a cosine.
    Differs: heads start as in every method here, and a class that comes back keeps one Gaussian per time.

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
    return Method(full(lr_scale=lr_scale), Linear(loss_over="own-task"), (rule,), train=train)
