"""MOS: merged adapters, an aligned head, and answers that choose their own adapter (arXiv 2412.09441)."""

from typing import Annotated

from contune.adapter.bottleneck.merged import BottleneckMerged
from contune.contract.options import Layers
from contune.head.self_refined import SelfRefined
from contune.method.method import Method
from contune.method.options import of
from contune.rule.align.alignment import Alignment
from contune.rule.align.statistics import Form


def mos(
    *,
    size: Annotated[int, BottleneckMerged] = 16,
    share: Annotated[float, BottleneckMerged] = 0.1,
    merges: Annotated[int | None, BottleneckMerged] = None,
    spread: Annotated[float, BottleneckMerged] = 0.1,
    dropout: Annotated[float, BottleneckMerged] = 0.1,
    rounds: Annotated[int, SelfRefined] = 4,
    ensemble: Annotated[bool, SelfRefined] = True,
    alignment_epochs: Annotated[int, of(Alignment, "epochs"), "released code"] = 30,
    samples: Annotated[int, Alignment, "released code"] = 240,
    alignment_lr: Annotated[float, of(Alignment, "lr"), "released code"] = 0.005,
    form: Annotated[Form, Alignment] = "full",
    rank: Annotated[int, Alignment] = 8,
    layers: Layers = "all",
) -> Method:
    """Train bottlenecks per task, drawn to the mean of earlier ones; align one head; refine which adapter answers.

    After each task the head is trained on Gaussian samples of all classes, each measured through its own adapter. To
    answer, the nearest class mean in the first adapter's features names an adapter, the head's answer there the next,
    and so on; the two answers are averaged.

    Use it as ease, where small adapters and one head over all classes are wanted.

    Memory: 0.31 million weights per task in ViT-B/16, d^2 values per class (`form` low-rank: rank x d, diagonal: d) and
    three rows per class.
    Compute: a backward pass through the current adapter, then `alignment_epochs` x classes head steps; an answer takes
    one forward pass per task.
    Defaults: the released code's for CIFAR-100, 5 classes a task: batch 48, 20 epochs, SGD with cosine rate 0.03, the
    head at a tenth of it; images are cropped and flipped there too (set train.augment).
    Differs:
    - All merges of a step come after it (see adapter bottleneck-merged).
    - Before the next task the head goes back to what it was before the alignment, as in SLCA, where the released code
      goes on from the aligned one.
    - Task sizes may be unequal and classes may come back.
    - Written from the released code.

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
    adapter = BottleneckMerged(size=size, share=share, merges=merges, spread=spread, dropout=dropout, layers=layers)
    head = SelfRefined(lr_scale=0.1, rounds=rounds, ensemble=ensemble)
    return Method(adapter, head, (alignment,), train=train)
