"""MOS: merged adapters, an aligned head, and answers that choose their own adapter (arXiv 2412.09441)."""

from contune.adapter.bottleneck.merged import BottleneckMerged
from contune.head.self_refined import SelfRefined
from contune.method.method import Method
from contune.rule.align.alignment import Alignment
from contune.rule.align.statistics import Form


def mos(
    *,
    size: int = 16,
    share: float = 0.1,
    spread: float = 0.1,
    dropout: float = 0.1,
    rounds: int = 4,
    ensemble: bool = True,
    alignment_epochs: int = 30,
    samples: int = 240,
    alignment_lr: float = 0.005,
    form: Form = "full",
    rank: int = 8,
    layers: str | list[int] = "all",
) -> Method:
    """Train bottlenecks per task, drawn to the mean of earlier ones; align one head; refine which adapter answers.

    After each task the head is trained on Gaussian samples of all classes, each measured through its own adapter. To
    answer, the nearest class mean in the first adapter's features names an adapter, the head's answer there the next, and
    so on; the two answers are averaged. Memory: 0.31 million weights per task in ViT-B/16, d^2 values per class (`form`
    `low-rank`: rank x d, `diagonal`: d) and three rows per class. Compute: a backward pass through the current adapter,
    then `alignment_epochs` x classes head steps; an answer takes one forward pass per task.
    Defaults: the released code's for CIFAR-100, 5 classes a task: batch 48, 20 epochs, SGD with cosine rate 0.03, the head
    at a tenth of it; images are cropped and flipped there too (set train.augment).
    Differs: a step merges once (see `bottleneck-merged`); before the next task the head goes back to what it was before
    the alignment, as in SLCA, where the released code goes on from the aligned one; task sizes may be unequal and classes
    may come back. Written from the released code.

    >>> mos().head.name
    'self-refined'
    """
    alignment = Alignment(
        epochs=alignment_epochs,
        samples=samples,
        batch_size=samples,
        lr=alignment_lr,
        temperature=None,
        shrink=1.0,
        form=form,
        rank=rank,
    )
    train = {
        "optimizer": "sgd",
        "lr": 0.03,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "batch_size": 48,
        "epochs": 20,
        "schedule": "cosine",
        "clip": None,
    }
    adapter = BottleneckMerged(size=size, share=share, spread=spread, dropout=dropout, layers=layers)
    head = SelfRefined(lr_scale=0.1, rounds=rounds, ensemble=ensemble)
    return Method(adapter, head, (alignment,), train=train)
