"""How far two models' answers to the same rows lie apart."""

import torch
from torch import Tensor
from torch.nn import functional


def softmax_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) for every row (U, C).

    >>> softmax_divergence(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), 2.0).item()
    0.0
    """
    old = functional.log_softmax(teacher / temperature, dim=1)
    new = functional.log_softmax(student / temperature, dim=1)
    return temperature**2 * (old.exp() * (old - new)).sum(dim=1)


def sigmoid_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean over columns of KL(Bernoulli(sigmoid(teacher / T)) || Bernoulli(sigmoid(student / T))), (U,).

    >>> round(sigmoid_divergence(torch.tensor([[0.0]]), torch.tensor([[3.0]]), 1.0).item(), 4)
    0.5023
    """
    new, old = student / temperature, teacher / temperature
    share = torch.sigmoid(old)
    cross = functional.binary_cross_entropy_with_logits(new, share, reduction="none")
    own = functional.binary_cross_entropy_with_logits(old, share, reduction="none")
    return temperature**2 * (cross - own).mean(dim=1)
