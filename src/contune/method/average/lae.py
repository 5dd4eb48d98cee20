"""LAE: learn with a rest first, accumulate a slow copy, and let both answer (arXiv 2303.10070)."""

from typing import Annotated, Any

from contune.adapter.around.ema import EmaAdapter, ema_adapter
from contune.head.linear import Linear
from contune.method.catalog import build_part
from contune.method.method import Method
from contune.method.options import of
from contune.rule.mask.freeze_first import FreezeFirst


def lae(
    *,
    adapter: Annotated[
        str | dict[str, Any], "what learns: a name, or {name: {option: value}}", "released code"
    ] = "calibrated-lora",
    decay: Annotated[float, ema_adapter] = 0.9999,
    rest: Annotated[float, of(FreezeFirst, "share")] = 0.6,
) -> Method:
    """Train one adapter through all tasks, keep a running mean of it, and answer by the larger softmax of the two.

    After the first task the adapter rests for a share of each task's epochs, while the new head rows settle. The answer
    is no distribution: it is the larger of two softmaxes for each class.

    Use it where what is kept must not grow with the tasks and no old example is at hand. Any adapter that lives through
    the stream will do: bottleneck, prefix, lora. The running mean follows over ten thousand steps: with larger batches
    or fewer steps lower `decay`.

    Memory: the adapter twice (77 thousand weights each in ViT-B/16) and the head, whatever the number of tasks.
    Compute: a full backward pass; two forward passes to answer.
    Defaults: the released code's for CIFAR-100, where images are cropped and flipped too (set train.augment): LoRA of
    rank 5 with learnt factors on keys and values of layers 0 to 4, head rows that start normal with a deviation of 0.001.
    Differs:
    - Other adapters are used as they are here, without the paper's compensated attention for prefixes, learnt factors,
      and adapters beside the attention.
    - The last, smaller batch of an epoch is learned from, there it is dropped.

    >>> lae().adapter.name
    'ema-adapter'
    """
    train = {"optimizer": "adam", "lr": 0.03 * 24 / 256, "batch_size": 24, "epochs": 5, "clip": None}
    kept = EmaAdapter(build_part("adapter", adapter), decay)
    return Method(kept, Linear(loss_over="own-task", start_spread=0.001), (FreezeFirst(share=rest),), train=train)
