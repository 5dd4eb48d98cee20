"""SLCA++: a slow low-rank learner, symmetric cross-entropy and alignment of scaled samples (arXiv 2408.08295)."""

from typing import Annotated

from contune.adapter.lora.norm_bias import LoraNormBias
from contune.head.scaled_linear import ScaledLinear
from contune.method.method import Method
from contune.method.options import of
from contune.rule.align.alignment import Alignment
from contune.rule.align.reverse_cross_entropy import ReverseCrossEntropy
from contune.rule.align.statistics import Form

NAME = "slca++"


def slca_plus_plus(
    *,
    rank: Annotated[int, LoraNormBias] = 4,
    scale: Annotated[float, LoraNormBias] = 0.8,
    lr_scale: Annotated[float, LoraNormBias] = 0.1,
    reverse_weight: Annotated[float, of(ReverseCrossEntropy, "weight")] = 0.1,
    head_scale: Annotated[float, "how features of old classes are scaled, each task more", "released code"] = 0.02,
    alignment_epochs: Annotated[int, of(Alignment, "epochs")] = 5,
    samples: Annotated[int, Alignment] = 256,
    alignment_lr: Annotated[float, of(Alignment, "lr")] = 0.01,
    temperature: Annotated[float, "divides normed scores in the alignment, above 0", "released code"] = 0.1,
    form: Annotated[Form, Alignment] = "full",
) -> Method:
    """Train LoRA, norms and biases on each task's own classes, then the head on scaled Gaussian samples of all classes.

    Samples of a class learned k tasks ago shrink by 1 / (1 + r k), r uniform around `head_scale` +- 0.01; to answer,
    its head row sees features times 1 + `head_scale` k.

    Use it in place of slca where the whole model is too much to train. Where classes repeat, as in domain-incremental
    streams, a class that has come back answers without a factor while the samples of its earlier times still shrink, so
    the two no longer fit: set `head_scale` 0 there.

    Memory: as slca for the statistics, plus about a percent of the model.
    Compute: a full backward pass, then `alignment_epochs` x classes head steps.
    Defaults: the released code's, with 5 epochs, which are ours and fewer.
    Differs:
    - Norms and LoRA share one rate, 0.1 of the head's, in every task; the released LoRA has 0.5 in the first.
    - The factor on a head's features applies to answers alone, as in the released code, and not in the alignment.

    >>> [rule.name for rule in slca_plus_plus().rules]
    ['alignment', 'reverse-cross-entropy']
    """
    alignment = Alignment(
        epochs=alignment_epochs,
        samples=samples,
        lr=alignment_lr,
        temperature=temperature,
        shrink=1.0,
        sample_scale=head_scale,
        form=form,
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
    adapter = LoraNormBias(rank=rank, scale=scale, lr_scale=lr_scale)
    head = ScaledLinear(scale=head_scale, loss_over="own-task")
    return Method(adapter, head, (alignment, ReverseCrossEntropy(weight=reverse_weight)), train=train)
