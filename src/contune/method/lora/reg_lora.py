"""RegLoRA: a LoRA per task, kept small where those before it were large (SEFE, arXiv 2505.02486)."""

from typing import Annotated

from contune.adapter.lora.per_task import LoraPerTask
from contune.contract.options import Alpha, Dropout, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.anchor.key_element_penalty import KeyElementPenalty


def reg_lora(
    *,
    rank: Rank = 8,
    alpha: Annotated[Alpha, "2 x rank, as released"] = 16.0,
    dropout: Dropout = 0.0,
    strength: Annotated[float, KeyElementPenalty] = 2500.0,
    share: Annotated[float, KeyElementPenalty] = 0.02,
    targets: Annotated[Targets, "released code"] = "all-linear",
    layers: Layers = "all",
) -> Method:
    """Give each task its own LoRA on top of the earlier ones, and pull its largest predecessors' places to zero.

    The second half of SEFE, against forgetting of content; the first half, which rewrites the training data into
    several styles of answers against forgetting of format, is no method but data (stream.language.styles).

    Use it as o-lora, where protecting few entries of the weights is wanted in place of whole directions.

    Memory: rank (d_in + d_out) per wrapped matrix and task, and `share` of its entries as places per task.
    Compute: as lora, plus the product B A per matrix and step.
    Defaults: strength 2500 and share 0.02 of the released code, for LoRAs of rank 128 and alpha 256 in all linear
    layers of a 7B model; rank 8 keeps alpha / rank = 2. Rate and epochs are ours.
    Differs:
    - The finished LoRAs stay beside the weights and are not merged into them, which answers the same.
    - Places are a set; their mean is over the matrices that there are and not over a fixed 224.
    - A head of classes, each learned against its own task's, stands in for a language model's.

    >>> reg_lora().rules[0].name
    'key-element-penalty'
    """
    adapter = LoraPerTask(rank=rank, alpha=alpha, dropout=dropout, targets=targets, layers=layers)
    rule = KeyElementPenalty(strength=strength, share=share)
    return Method(adapter, Linear(loss_over="own-task"), (rule,), train={"lr": 1e-3, "epochs": 5})
