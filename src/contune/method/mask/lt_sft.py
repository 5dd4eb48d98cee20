"""LT-SFT: lottery-ticket sparse fine-tuning, in deltas that compose (arXiv 2110.07560)."""

from typing import Annotated

from contune.adapter.weights.freezable import FreezableParameters
from contune.backbone.layers import is_norm
from contune.contract.options import Layers, LrScale
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.mask.lottery_ticket import lottery_ticket


def lt_sft(
    *,
    share: Annotated[float, lottery_ticket] = 0.076,
    iterations: Annotated[int, lottery_ticket] = 1,
    l1: Annotated[float, lottery_ticket] = 0.0,
    norms: Annotated[bool, "whether layer norms are among the weights that may be chosen"] = True,
    layers: Layers = "all",
    lr_scale: Annotated[LrScale, "SLCA (2303.05118), section 3.2"] = 0.01,
) -> Method:
    """Fine-tune a task, keep in mind the weights that changed most, rewind, and fine-tune these alone.

    Every task draws its own ticket, starting from the model with the earlier tasks' sparse deltas in it, and its delta
    is kept: the model is theta_0 + sum_t phi_t. Nothing protects old entries where tickets overlap.

    Use it where what a task changed should be small, kept by itself and taken out of the model again
    (`contune.rule.mask.sparse_delta`).

    Memory: the model in place of the base, a copy of it while a task is learned, and per task 12 bytes for each weight
    chosen.
    Compute: twice that of full fine-tuning, and more with `iterations`.
    Defaults: exactly `share` of all weights together is chosen; 0.076 is the paper's for mBERT, the code's default is
    0.01. `l1` 0.1 is recalled for the paper's languages. Rates, epochs and `iterations` are ours.
    Differs:
    - Both phases take the epochs that are set.
    - Moves are masked, not gradients alone, so weight decay may be used; ties never raise the number of weights.
    - Embeddings are among the weights. Heads of classes are not in the delta.

    >>> lt_sft().rules[0].name
    'lottery-ticket'
    """
    adapter = FreezableParameters("full", lambda _name, owner: norms or not is_norm(owner), layers, lr_scale)
    rule = lottery_ticket(share=share, iterations=iterations, l1=l1)
    return Method(adapter, Linear(), (rule,), train={"lr": 1e-2, "epochs": 5})
