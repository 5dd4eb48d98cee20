"""Grafts: a small region of fine-tuned weights in an otherwise unchanged base (arXiv 2302.06600)."""

import torch

from contune.merge.tensors import LazyTensors, Tensors, mapped, reaches, wide


def grafted(base: Tensors, tuned: Tensors, threshold: float) -> LazyTensors:
    """theta_pre + gamma (theta_ft - theta_pre), gamma 1 where the move reaches `threshold`, else 0.

    Taken from one of the two and never computed, so that every weight is exactly one of theirs. The threshold is that of
    `magnitude_threshold` for the share wanted. Differs: the released code's `>` drops the entry at the threshold itself.

    >>> grafted({"a": torch.tensor([1.0, 1.0])}, {"a": torch.tensor([1.5, 3.0])}, threshold=2.0)["a"].tolist()
    [1.0, 3.0]
    """

    def choose(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(old.dtype, new.dtype)
        return torch.where(reaches(wide(new) - wide(old), threshold), new.to(dtype), old.to(dtype))

    return mapped(choose, base, tuned)


def region_size(moves: Tensors, threshold: float) -> dict[str, int]:
    """How many entries are grafted, and out of how many.

    >>> region_size({"a": torch.tensor([1.0, -3.0])}, 2.0)
    {'entries': 1, 'of': 2}
    """
    counts = [(int(reaches(move, threshold).sum()), move.numel()) for move in moves.values()]
    return {"entries": sum(count for count, _ in counts), "of": sum(size for _, size in counts)}
