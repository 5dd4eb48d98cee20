"""Sums, means and elections of task vectors: the mathematics of merging, as functions of named tensors."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from contune.errors import ConfigError
from contune.merge.progress import Watch
from contune.merge.tensors import (
    LazyTensors,
    Tensors,
    magnitude_threshold,
    mapped,
    reaches,
    require_same_names,
    require_share,
    wide,
)


def weighted_sum(changes: Sequence[Tensors], weights: Sequence[float]) -> LazyTensors:
    """Task arithmetic: sum_t lambda_t tau_t (arXiv 2212.04089, section 2); a negative weight forgets.

    >>> weighted_sum([{"a": torch.tensor([1.0])}, {"a": torch.tensor([4.0])}], [2.0, -0.5])["a"].item()
    0.0
    """
    require_weights(changes, weights)
    return mapped(lambda *values: sum_of(values, weights), *changes)


def weighted_mean(models: Sequence[Tensors], weights: Sequence[float]) -> LazyTensors:
    """sum_t w_t theta_t / sum_t w_t (the uniform soup of arXiv 2203.05482 where all weights are equal).

    >>> weighted_mean([{"a": torch.tensor([1.0])}, {"a": torch.tensor([4.0])}], [2.0, 1.0])["a"].item()
    2.0
    """
    return weighted_sum(models, normalised_weights(weights))


def normalised_weights(weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum.

    >>> normalised_weights([3, 1])
    [0.75, 0.25]
    """
    total = sum(weights)
    if not total > 0:
        raise ConfigError(f"weights {list(weights)} sum to {total}; a mean needs weights with a sum above 0")
    return [weight / total for weight in weights]


def ties(changes: Sequence[Tensors], weights: Sequence[float], keep: float, watch: Watch = iter) -> LazyTensors:
    """TIES: trim, elect a sign, mean of those that agree (arXiv 2306.01708, algorithm 1).

    Trimming keeps the share `keep` of largest entries over the whole task vector, as in the paper, and not tensor by
    tensor. Differs: the mean is weighted (equal weights give the paper's), and where the trimmed entries cancel exactly
    nothing is elected and the change is 0, as in the paper's text; its code takes the majority sign of the whole vector.

    >>> first, second = {"a": torch.tensor([4.0, -1.0, 3.0])}, {"a": torch.tensor([2.0, 2.0, -1.0])}
    >>> ties([first, second], [1.0, 1.0], keep=1.0)["a"].tolist()
    [3.0, 2.0, 3.0]
    """
    require_weights(changes, weights)
    if min(weights) <= 0:
        raise ConfigError(f"weights are {list(weights)}; TIES elects signs, so give weights above 0")
    for change in changes[1:]:
        require_same_names(changes[0], change)
    thresholds = [magnitude_threshold(change, keep, watch) for change in changes]

    def make(name: str) -> Tensor:
        trimmed = (trim(change[name], least) for change, least in zip(changes, thresholds, strict=True))
        return elected_mean(list(trimmed), weights)

    return LazyTensors(changes[0], make)


def trim(value: Tensor, threshold: float) -> Tensor:
    """The entries that reach the threshold, and zeros.

    >>> trim(torch.tensor([1.0, -2.0]), 2.0).tolist()
    [0.0, -2.0]
    """
    values = wide(value)
    return values * reaches(values, threshold)


def elected_mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Steps 2 and 3 of TIES: the sign of the weighted sum, then the weighted mean of the entries that have it.

    >>> elected_mean([torch.tensor([4.0, 1.0]), torch.tensor([-1.0, -3.0])], [1.0, 1.0]).tolist()
    [4.0, -3.0]
    """
    sign = sum_of(values, weights).sign()
    agree = [(value.sign() == sign) & (sign != 0) for value in values]
    above = sum_of([value * mask for value, mask in zip(values, agree, strict=True)], weights)
    below = sum_of([mask.to(sign.dtype) for mask in agree], weights)
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), torch.zeros_like(above))


def dare(change: Tensors, keep: float, seed: str) -> LazyTensors:
    """DARE: drop entries at random and divide the rest by the share kept (arXiv 2311.03099).

    The mask of a tensor depends on `seed` and the tensor's name alone: not on other tensors, nor on the order. Differs:
    the paper gives the share p that is dropped; `keep` is 1 - p.

    >>> whole = {"a": torch.ones(4)}
    >>> dare(whole, keep=1.0, seed="0")["a"].tolist()
    [1.0, 1.0, 1.0, 1.0]
    >>> set(dare({"a": torch.ones(100)}, keep=0.5, seed="0")["a"].tolist()) == {0.0, 2.0}
    True
    """
    require_share("dare", keep)
    if keep == 0:
        raise ConfigError("dare is 0, which drops every change; give a share above 0 that is kept, such as 0.1")

    def make(name: str) -> Tensor:
        value = wide(change[name])
        return value * (named_uniform(value, f"{seed}/{name}") < keep) / keep

    return LazyTensors(change, make)


def named_uniform(like: Tensor, key: str) -> Tensor:
    """Uniform numbers in [0, 1) of a tensor's shape that depend on a text alone."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
    generator = torch.Generator().manual_seed(number)
    return torch.rand(like.shape, generator=generator, dtype=torch.float32)


def sum_of(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_t w_t x_t in a wide type, added in the order given."""
    total = wide(values[0]) * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = total + wide(value) * weight
    return total


def require_weights(models: Sequence[object], weights: Sequence[float]) -> None:
    """Refuse weights that are not one for each model."""
    if not models or len(models) != len(weights):
        raise ConfigError(f"there are {len(weights)} weights for {len(models)} models; give one weight for each model")
