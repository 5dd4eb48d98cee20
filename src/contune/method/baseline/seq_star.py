"""SEQ*: fine-tune the model briefly on the first task, then grow a head whose old rows never move (arXiv 2312.07887)."""

from typing import Annotated, Any, Literal

from contune.adapter.weights.subset import full
from contune.contract.options import LrScale
from contune.head.frozen_rows import FrozenRows
from contune.method.method import Method
from contune.method.options import of
from contune.rule.align.preallocation import Preallocation
from contune.rule.mask.freeze_backbone_after import FreezeBackboneAfter

# Released: warm-up of 3 epochs and 5 for the head alone in the first task; rates 1e-5 and 1e-3.
LOOP: dict[str, Any] = {"epochs": 8, "lr": 1e-3, "clip": None}


def seq_star(
    *,
    warmup_epochs: Annotated[int, of(FreezeBackboneAfter, "epochs")] = 3,
    classifier: Annotated[Literal["cosine", "linear"], of(FrozenRows, "kind")] = "cosine",
    scale: Annotated[float, FrozenRows] = 1.0,
    reserved_rows: Annotated[int, FrozenRows] = 0,
    lr_scale: Annotated[LrScale, "released code"] = 0.01,
) -> Method:
    """Warm the whole model up for a few epochs of the first task, freeze it, and train rows of new classes alone.

    What a language model knows of a class it keeps, and forgetting sits in the head: so the model rests after the
    warm-up, and rows of classes that the task does not have keep every bit. The head is a `cosine` one, which the paper
    takes where nothing is rehearsed and no task is named, and `linear` elsewhere. `reserved_rows` pre-allocates: so
    many rows for classes to come compete in the loss already, and new classes begin with them.

    Use it for text classes on a pretrained encoder, as a baseline that is hard to beat. In language streams answers are
    written and there are no rows, so it is refused. Reserved rows need long training: give as many as one or two tasks
    bring.

    Memory: the optimizer's two copies of the model in the first task, then (classes + reserved rows) x d.
    Compute: a full backward pass in the warm-up; later tasks train rows on features that are computed once.
    Defaults: rates and warm-up as released; the released scale of cosines, 1, keeps scores close together, a larger one
    learns faster. Reserved rows are off, though the paper reports both ways, because rows that were pushed away need
    many steps to come back: our tiny model learns nothing new in 9 steps with 10 of them, and most of it in 60.
    Differs:
    - The released code makes rows for all classes there will be; here `reserved_rows` of them are always ahead, so
      nobody need know how many come.
    - Tasks have the same number of epochs, there the first has the warm-up on top.
    - Weight decay (there 5e-4 in the model, 0.01 in the head) is off.
    - In streams whose classes come back, as in new domains, their rows train again.

    >>> [rule.name for rule in seq_star().rules]
    ['preallocation', 'freeze-backbone-after']
    """
    head = FrozenRows(kind=classifier, scale=scale, reserved_rows=reserved_rows)
    rules = (Preallocation(), FreezeBackboneAfter(epochs=warmup_epochs))
    return Method(full(lr_scale=lr_scale), head, rules, adapt="first-task", train=LOOP)
