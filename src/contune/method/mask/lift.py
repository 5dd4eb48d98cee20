"""LIFT: sparse fine-tuning of principal weights (arXiv 2506.00772)."""

from typing import Annotated

from contune.adapter.weights.linear_layers import linear_layers
from contune.contract.options import Layers
from contune.head.linear import Linear
from contune.method.method import Method
from contune.numerics.masks import Choice
from contune.rule.mask.principal_mask import PrincipalMask


def lift(
    *,
    rank: Annotated[int, PrincipalMask] = 32,
    filter_rank: Annotated[int, PrincipalMask] = 16,
    interval: Annotated[int, PrincipalMask] = 400,
    choice: Annotated[Choice, PrincipalMask] = "low-rank",
    layers: Layers = "all",
    lr_scale: Annotated[float, linear_layers] = 0.01,
) -> Method:
    """Fine-tune, of every matrix, the few entries that are largest in its low-rank part, and leave all others.

    Embeddings, the language head, norms and biases rest, as in the released code and its configurations.

    Use it where full fine-tuning learns best and should change as few weights as a LoRA has. Keep `weight_decay` 0: it
    would act on the mask alone.

    Memory: the model in place of the base, its moments, and a bit per weight while a task is learned.
    Compute: a full backward pass, and an exact SVD of every matrix per task and `interval` steps.
    Defaults: rank 32 with filter rank 16 as released for an 8B model; of a matrix with sides of 768 that is 8 percent.
    Other released runs have rank 128 and filter rank 32 to 128, intervals of 10 to 2000. Rates and epochs are ours.
    Differs:
    - The paper learns one task; here each takes its mask from the weights that the last one left, so overlapping masks
      are what old tasks can lose.
    - Moments are dense (see rule principal-mask), the randomised SVD is left out, and a classifier's head trains.
    - Routers of experts are among the matrices, and experts kept in one tensor are masked one by one; the released code
      knows linear layers alone.

    >>> lift().rules[0].name
    'principal-mask'
    """
    rule = PrincipalMask(rank=rank, filter_rank=filter_rank, interval=interval, choice=choice)
    adapter = linear_layers(layers=layers, lr_scale=lr_scale)
    return Method(adapter, Linear(), (rule,), train={"lr": 1e-2, "epochs": 5})
