"""HFT: half fine-tuning, a random half of the matrices at a time (arXiv 2404.18466)."""

from typing import Annotated

from contune.adapter.weights.half_fine_tuning import Half
from contune.contract.options import Layers
from contune.head.linear import Linear
from contune.method.method import Method


def hft(
    *,
    share: Annotated[float, Half] = 0.5,
    layers: Layers = "all",
    lr_scale: Annotated[float, Half] = 0.01,
) -> Method:
    """Fine-tune all weights but a random half of each layer's matrices, drawn anew for every task.

    theta_t = theta_{t-1} + M * Delta: what rests keeps what earlier tasks left there. Nothing is kept between tasks but
    the model.

    Use it where the whole model is fine-tuned anyway and nothing may be added or kept. Results depend on the draw:
    report several seeds. `share` 0 is full fine-tuning.

    Memory: the model in place of the base, and half of the gradients and moments of full fine-tuning.
    Compute: a backward pass without the gradients of half of the matrices.
    Defaults: half of the matrices as in the paper; rates and epochs are this library's for full fine-tuning (the
    paper's runs take 2e-5 on a 7B model).
    Differs:
    - Models with other numbers of matrices than Llama's share them out by the same rule.
    - A classifier has its head, which always trains.

    >>> hft().adapter.name
    'half-fine-tuning'
    """
    return Method(Half(share=share, layers=layers, lr_scale=lr_scale), Linear(), train={"lr": 1e-2, "epochs": 5})
