"""Means and sums that parts share: running means of tensors, means of rows, sums of features by class."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def moved_average(average: Mapping[str, Tensor], current: Mapping[str, Tensor], decay: float) -> dict[str, Tensor]:
    """decay * average + (1 - decay) * current, by the names of the average.

    >>> moved_average({"a": torch.tensor([1.0])}, {"a": torch.tensor([5.0])}, 0.75)["a"].item()
    2.0
    """
    return {name: decay * value + (1 - decay) * current[name].detach() for name, value in average.items()}


def row_mean(values: Tensor, counts: Mapping[str, int], rows: int) -> Tensor:
    """Mean of per-row values over the step's rows on all processes: their `counts` by segment, or `rows` without any.

    >>> row_mean(torch.tensor([1.0, 2.0]), {"task": 4, "replay": 2}, 2).item()
    0.5
    """
    return values.sum() / (sum(counts.values()) or rows)


def class_sums(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sum (classes, d) and count (classes,) of the features of every class, in float64.

    >>> class_sums(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 1, 1]), 2)[0].flatten().tolist()
    [1.0, 6.0]
    """
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64)
    sums.index_add_(0, labels, features.double())
    return sums, torch.bincount(labels, minlength=classes)


def summed_blocks(
    blocks: Iterable[tuple[NDArray[np.int64], Tensor]], labels: NDArray[np.int64], classes: int, width: int
) -> tuple[Tensor, Tensor]:
    """What `class_sums` says of all features together, with one block of them at a time; `labels` (n,) of all rows.

    >>> blocks = [(np.array([1, 2]), torch.tensor([[2.0], [4.0]])), (np.array([0]), torch.tensor([[1.0]]))]
    >>> summed_blocks(blocks, np.array([0, 1, 1]), 2, 1)[0].flatten().tolist()
    [1.0, 6.0]
    """
    sums = torch.zeros(classes, width, dtype=torch.float64)
    for rows, features in blocks:
        sums.index_add_(0, torch.from_numpy(labels[rows]), features.double())
    return sums, torch.bincount(torch.from_numpy(labels), minlength=classes)
