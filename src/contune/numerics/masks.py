"""Masks on the step: which rows or entries of a weight may move, chosen by size, by chance, by low rank or by activity.

A mask is true where a weight may move. It is put on the move, what the optimizer would add, because a masked gradient
alone lets momentum and weight decay through; and on the gradient, so that what rests leaves no trace in the moments.
Choosing is exact and repeatable: so many entries and no more, equals in the order in which they stand.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from contune.errors import ConfigError

SLACK = 1e-9  # a share such as 0.7 of 10 is 7.000000000000001 in floating point
Tensors = Mapping[str, Tensor]
Choice = Literal["low-rank", "magnitude", "random"]


def held(update: Tensor, mask: Tensor) -> Tensor:
    """The move, and -0.0 where the mask is false: added to any number, -0.0 too, that leaves its every bit.

    >>> held(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True], [False]])).tolist()
    [[1.0, 2.0], [-0.0, -0.0]]
    """
    return update.masked_fill(~mask, -0.0)


def held_updates(updates: Tensors, masks: Tensors) -> Tensors:
    """Moves with the masked ones held; a tensor without a mask is handed on as the same object."""
    return {name: held(update, masks[name]) if name in masks else update for name, update in updates.items()}


def masked_gradients(gradients: Tensors, masks: Tensors) -> Tensors:
    """Gradients with zeros where masks are false; a tensor without a mask is handed on as the same object.

    >>> masked_gradients({"a": torch.ones(2)}, {"a": torch.tensor([True, False])})["a"].tolist()
    [1.0, 0.0]
    """
    return {
        name: gradient.masked_fill(~masks[name], 0.0) if name in masks else gradient
        for name, gradient in gradients.items()
    }


def rows_of(rows: Tensor, *, transposed: bool) -> Tensor:
    """A mask of output units (o,) in the form that a weight (o, i) takes, or, transposed, one of (i, o).

    >>> rows_of(torch.tensor([True, False]), transposed=True).shape
    torch.Size([1, 2])
    """
    return rows.unsqueeze(0) if transposed else rows.unsqueeze(1)


def most_active(magnitudes: Tensor, masked: float) -> Tensor:
    """The units (o,) whose magnitude reaches the `masked` quantile: o - ceil(masked (o - 1)) of them, and more in a tie.

    The quantile between two order statistics lies above the lower one, so the upper one tells who reaches it
    (arXiv 2406.17245, section 3).

    >>> most_active(torch.tensor([1.0, 4.0, 3.0, 2.0]), 0.5).tolist()
    [False, True, True, False]
    >>> most_active(torch.zeros(3), 0.7).tolist()
    [True, True, True]
    """
    place = math.ceil(masked * (len(magnitudes) - 1) - SLACK)
    return magnitudes >= magnitudes.sort().values[place]


def sampled(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Exactly `count` of `size` (size,), at random.

    >>> int(sampled(10, 4, torch.Generator().manual_seed(0)).sum())
    4
    """
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=generator)[:count]] = True
    return mask


def largest(values: Tensor, count: int) -> Tensor:
    """Exactly `count` entries, the largest ones, in the shape of `values`; among equals the first.

    >>> largest(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2).tolist()
    [False, True, True, False]
    """
    flat = values.reshape(-1)
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    if count >= len(flat):
        return torch.ones_like(values, dtype=torch.bool)
    threshold = flat.kthvalue(len(flat) - count + 1).values
    above, equal = flat > threshold, flat == threshold
    return (above | (equal & (equal.cumsum(0) <= count - above.sum()))).view_as(values)


def largest_together(values: Tensors, count: int, taken: Tensors) -> dict[str, Tensor]:
    """The `count` largest entries over all tensors together that are not `taken` yet, and those that are.

    >>> values = {"a": torch.tensor([5.0, 1.0]), "b": torch.tensor([4.0, 3.0])}
    >>> {n: m.tolist() for n, m in largest_together(values, 2, {n: v > 4.5 for n, v in values.items()}).items()}
    {'a': [True, False], 'b': [True, True]}
    """
    open_ = {name: ~taken[name] for name in values}
    chosen = largest(torch.cat([value[open_[name]] for name, value in values.items()]), count)
    found, start = {}, 0
    for name, value in values.items():
        stop = start + int(open_[name].sum())
        found[name] = taken[name].clone()
        found[name][open_[name]] = chosen[start:stop].to(value.device)
        start = stop
    return found


def low_rank(weight: Tensor, rank: int) -> Tensor:
    """U_k S_k V_k^T, the nearest matrix of rank k; the weight itself where k is as large as its sides.

    >>> low_rank(torch.diag(torch.tensor([3.0, 2.0])), 1).abs().tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    if rank >= min(weight.shape):
        return weight
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    nearest: Tensor = (left[:, :rank] * values[:rank]) @ right[:rank]
    return nearest


def lora_budget(shape: Sequence[int], rank: int) -> int:
    """How many weights a LoRA of this rank has on a matrix (m, n), at most all m n of the matrix.

    >>> lora_budget((4, 6), 2), lora_budget((4, 6), 100)
    (20, 24)
    """
    return min(sum(shape) * rank, math.prod(shape))


def principal(weight: Tensor, rank: int, filter_rank: int, choice: Choice, generator: torch.Generator) -> Tensor:
    """Where a matrix (m, n) is principal: the largest of |W_k|, as many as a LoRA of `rank` has (arXiv 2506.00772).

    `choice`: by the `low-rank` W_k with k = `filter_rank`; as the paper's controls by the `magnitude` of W, or at `random`.

    >>> weight = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 1.9], [0.0, 2.0, 1.9]])
    >>> largest(low_rank(weight, 1).abs(), 4).tolist() == largest(weight.abs(), 4).tolist()
    False
    """
    count = lora_budget(weight.shape, rank)
    if choice == "random":
        return sampled(weight.numel(), count, generator).view(weight.shape).to(weight.device)
    return largest((weight if choice == "magnitude" else low_rank(weight, filter_rank)).abs(), count)


def frozen_counts(sizes: Sequence[int], share: float, generator: np.random.Generator) -> list[int]:
    """How many of the matrices of each layer rest: `share` of them, where that is no whole number one more by chance.

    So many layers have one more that `share` of all matrices rest, rounded up (arXiv 2404.18466).

    >>> sorted(frozen_counts([3, 3, 3, 3], 0.5, np.random.default_rng(0)))
    [1, 1, 2, 2]
    """
    counts = [int(share * size + SLACK) for size in sizes]
    left = [share * size - count for size, count in zip(sizes, counts, strict=True)]
    unsure = [layer for layer, rest in enumerate(left) if rest > SLACK]
    more = math.ceil(sum(left[layer] for layer in unsure) - SLACK)
    for place in generator.permutation(len(unsure))[:more].tolist():
        counts[unsure[place]] += 1
    return counts


def changed(before: Tensor, after: Tensor, tolerance: float) -> Tensor:
    """Which entries differ by more than the tolerance, measured in float32.

    >>> changed(torch.zeros(3), torch.tensor([1e-6, 1e-4, -1.0]), 1e-5).tolist()
    [False, True, True]
    """
    return (after.float() - before.float()).abs() > tolerance


def sparsity(before: Tensors, after: Tensors, tolerance: float = 1e-5) -> float:
    """1 - ||after - before||_0 / n over all tensors (arXiv 2505.11711, section 2).

    Weights stored in bf16 look sparse, because small changes are rounded away: measure in float32 and say which.

    >>> sparsity({"a": torch.zeros(4)}, {"a": torch.tensor([0.0, 0.0, 0.0, 1.0])})
    0.75
    """
    moved = sum(int(changed(value, after[name], tolerance).sum()) for name, value in before.items())
    return 1 - moved / sum(value.numel() for value in before.values())


def overlap(first: Tensors, second: Tensors) -> tuple[float, float]:
    """What share of one mask lies in another, and what share would by chance: |m1 & m2| / |m1| and |m2| / n.

    >>> overlap({"a": torch.tensor([True, True, False, False])}, {"a": torch.tensor([False, True, False, False])})
    (0.5, 0.25)
    """
    both = sum(int((mask & second[name]).sum()) for name, mask in first.items())
    one, other = (sum(int(mask.sum()) for mask in masks.values()) for masks in (first, second))
    return both / max(one, 1), other / sum(mask.numel() for mask in second.values())


def packed(mask: Tensor) -> Tensor:
    """A mask as bytes of eight bits each: how it is saved."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpacked(bits: Tensor, like: Tensor) -> Tensor:
    """The mask that was packed, in the shape and on the device of a tensor.

    >>> mask = torch.tensor([[True, False, True], [False, True, True]])
    >>> torch.equal(unpacked(packed(mask), mask), mask)
    True
    """
    flat = np.unpackbits(bits.cpu().numpy(), count=like.numel()).astype(np.bool_)
    return torch.from_numpy(flat).view(like.shape).to(like.device)


def all_unpacked(bits: Mapping[str, Tensor], like: Tensors) -> dict[str, Tensor]:
    """All masks that were packed, by name."""
    return {name: unpacked(value, like[name]) for name, value in bits.items()}


def require_share(name: str, value: float) -> None:
    """Refuse what is no share below one: something must be left to learn with."""
    if not 0 <= value < 1:
        raise ConfigError(f"{name} is {value}; give at least 0 and less than 1")
