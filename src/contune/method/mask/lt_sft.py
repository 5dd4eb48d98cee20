"""LT-SFT: lottery-ticket sparse fine-tuning, in deltas that compose (arXiv 2110.07560)."""

from contune.adapter.weights.freezable import FreezableParameters
from contune.backbone.layers import is_norm
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.mask.lottery_ticket import lottery_ticket


def lt_sft(
    *,
    share: float = 0.076,
    iterations: int = 1,
    l1: float = 0.0,
    norms: bool = True,
    layers: str | list[int] = "all",
    lr_scale: float = 0.01,
) -> Method:
    """Fine-tune a task, keep in mind the weights that changed most, rewind, and fine-tune these alone.

    Every task draws its own ticket, starting from the model with the earlier tasks' sparse deltas in it, and its delta
    is kept: the model is theta_0 + sum_t phi_t, and one can be taken out of the sum again (`rule/sparse_delta.py`). Nothing
    protects old entries where tickets overlap. `share` of all weights together is chosen, exactly so many; 0.076 is
    the paper's for mBERT, the code's default is 0.01. `norms` false leaves layer norms alone, as the code can. `l1` 0.1 is
    recalled for the paper's languages. Memory: the model in place of the base, a copy of it while a task is learned,
    and per task 12 bytes for each weight chosen. Compute: twice that of full fine-tuning, and more with `iterations`.

    Differs: both phases take the epochs that are set; moves are masked, not gradients alone, so weight decay may be
    used; ties never raise the number of weights. Embeddings are among the weights. Heads of classes are not in the delta.

    >>> lt_sft().rules[0].name
    'lottery-ticket'
    """
    adapter = FreezableParameters("full", lambda _name, owner: norms or not is_norm(owner), layers, lr_scale)
    rule = lottery_ticket(share=share, iterations=iterations, l1=l1)
    return Method(adapter, Linear(), (rule,), train={"lr": 1e-2, "epochs": 5})
