"""HFT: half fine-tuning, a random half of the matrices at a time (arXiv 2404.18466)."""

from contune.adapter.weights.half_fine_tuning import Half
from contune.head.linear import Linear
from contune.method.method import Method


def hft(*, share: float = 0.5, layers: str | list[int] = "all", lr_scale: float = 0.01) -> Method:
    """Fine-tune all weights but a random half of each layer's matrices, drawn anew for every task.

    theta_t = theta_{t-1} + M * Delta: what rests keeps what earlier tasks left there. Nothing is kept between tasks but
    the model. Memory: the model in place of the base, and half of the gradients and moments of full fine-tuning. Compute:
    a backward pass without the gradients of half of the matrices. Results depend on the draw: report several seeds.
    `share` 0 is full fine-tuning.

    Differs: the rates are this library's for full fine-tuning (the paper's SFT runs take 2e-5 on a 7B model); models
    with other numbers of matrices than Llama's share them out by the same rule; a classifier has its head, which always
    trains.

    >>> hft().adapter.name
    'half-fine-tuning'
    """
    return Method(Half(share=share, layers=layers, lr_scale=lr_scale), Linear(), train={"lr": 1e-2, "epochs": 5})
