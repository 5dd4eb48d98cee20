"""SEQ*: fine-tune the model briefly on the first task, then grow a head whose old rows never move (arXiv 2312.07887)."""

from typing import Any, Literal

from contune.adapter.weights.subset import full
from contune.head.frozen_rows import FrozenRows
from contune.method.method import Method
from contune.rule.align.preallocation import Preallocation
from contune.rule.mask.freeze_backbone_after import FreezeBackboneAfter

# Released: warm-up of 3 epochs and 5 for the head alone in the first task; rates 1e-5 and 1e-3.
LOOP: dict[str, Any] = {"epochs": 8, "lr": 1e-3, "clip": None}


def seq_star(
    *,
    warmup_epochs: int = 3,
    classifier: Literal["cosine", "linear"] = "cosine",
    scale: float = 1.0,
    reserved_rows: int = 0,
    lr_scale: float = 0.01,
) -> Method:
    """Warm the whole model up for a few epochs of the first task, freeze it, and train rows of new classes alone.

    What a language model knows of a class it keeps, and forgetting sits in the head: so the model rests after
    `warmup_epochs`, rows of classes that the task does not have keep every bit, and the head is a `cosine` one, which
    the paper takes where nothing is rehearsed and no task is named, and `linear` elsewhere. `reserved_rows` pre-allocates:
    so many rows for classes to come compete in the loss already, and new classes begin with them. The paper reports both
    ways; it is off, because rows that were pushed away need many steps to come back (our tiny model learns nothing new
    in 9 steps with 10 spare rows, and most of it in 60). Give it as many as one or two tasks bring, and train for long.

    Memory: the optimizer's two copies of the model in the first task, then (classes + spare) x d. Compute: a full
    backward pass in the warm-up; later tasks train rows on features that are computed once. Differs: the released code
    makes rows for all classes there will be, and here `reserved_rows` of them are always ahead, so nobody need know how many
    come; tasks have the same number of epochs, there the first has the warm-up on top; `lr_scale` and the rate are the
    released ones, weight decay (there 5e-4 in the model, 0.01 in the head) is off. In streams whose classes come back, as
    in new domains, their rows train again. In language streams answers are written and there are no rows, so it is
    refused. The released scale of cosines, 1, keeps scores close together; a larger one learns faster.

    >>> [rule.name for rule in seq_star().rules]
    ['preallocation', 'freeze-backbone-after']
    """
    head = FrozenRows(kind=classifier, scale=scale, reserved_rows=reserved_rows)
    rules = (Preallocation(), FreezeBackboneAfter(epochs=warmup_epochs))
    return Method(full(lr_scale=lr_scale), head, rules, adapt="first-task", train=LOOP)
