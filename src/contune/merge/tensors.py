"""Named tensors that are made when they are asked for, so that a merge holds one tensor of each model at a time."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import final

import torch
from torch import Tensor

from contune.errors import ConfigError, DataError
from contune.merge.progress import Watch

Tensors = Mapping[str, Tensor]


@final
class LazyTensors(Mapping[str, Tensor]):
    """A mapping whose values are computed at every look-up and never kept.

    >>> twice = LazyTensors(["a"], lambda name: torch.ones(2) * 2)
    >>> twice["a"].tolist(), len(twice)
    ([2.0, 2.0], 1)
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def wide(value: Tensor) -> Tensor:
    """The tensor in a type in which differences keep their low bits: float64, or float32 for 16-bit floats.

    >>> wide(torch.ones(1)).dtype, wide(torch.ones(1, dtype=torch.bfloat16)).dtype
    (torch.float64, torch.float32)
    """
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value.double()


def mapped(function: Callable[..., Tensor], *sources: Tensors) -> LazyTensors:
    """`function` of the tensors of one name, for every name; all sources must have the same names.

    >>> mapped(torch.add, {"a": torch.ones(1)}, {"a": torch.ones(1)})["a"].item()
    2.0
    """
    for source in sources[1:]:
        require_same_names(sources[0], source)
    return LazyTensors(sources[0], lambda name: function(*(source[name] for source in sources)))


def difference(model: Tensors, base: Tensors) -> LazyTensors:
    """The task vector tau = theta_ft - theta_0 (arXiv 2212.04089, section 2), in a wide type.

    >>> difference({"a": torch.tensor([3.0])}, {"a": torch.tensor([1.0])})["a"].item()
    2.0
    """
    return mapped(lambda new, old: wide(new) - wide(old), model, base)


def plus(base: Tensors, change: Tensors) -> LazyTensors:
    """theta_0 + tau, in a wide type.

    >>> plus({"a": torch.tensor([3.0])}, {"a": torch.tensor([1.0])})["a"].item()
    4.0
    """
    return mapped(lambda old, move: wide(old) + wide(move), base, change)


def require_same_names(first: Tensors, second: Tensors) -> None:
    """Refuse two sets of tensors of which one has names that the other lacks.

    >>> require_same_names({"a": torch.ones(1)}, {"b": torch.ones(1)})
    Traceback (most recent call last):
    contune.errors.DataError: one set of tensors has 'a' and the other has not; merge models of one architecture
    """
    odd = sorted(set(first) ^ set(second))
    if odd:
        raise DataError(f"one set of tensors has {odd[0]!r} and the other has not; merge models of one architecture")


def magnitude_threshold(tensors: Tensors, keep: float, watch: Watch = iter) -> float:
    """The magnitude that the share `keep` of all entries of all tensors reaches; infinity where keep is 0.

    Exact, in two passes that hold one tensor: sizes of positive float32 numbers are ordered as their bits are, so the
    upper bits are counted first and the lower ones in the one bin that matters. The number of entries is rounded up, and
    entries equal to the threshold all count as kept.

    >>> magnitude_threshold({"a": torch.tensor([-4.0, 1.0]), "b": torch.tensor([2.0, 3.0])}, 0.5)
    3.0
    """
    require_share("keep", keep)
    if keep in (0.0, 1.0):
        return 0.0 if keep else math.inf
    upper = torch.zeros(1 << 15, dtype=torch.int64)
    for name in watch(tensors):
        upper += torch.bincount(_bits(tensors[name]) >> 16, minlength=1 << 15)
    # Rounded first, because 0.1 * 30 is a little more than 3 in floating point.
    wanted = max(1, math.ceil(round(keep * int(upper.sum()), 6)))
    high, left = _bin_from_top(upper, wanted)
    lower = torch.zeros(1 << 16, dtype=torch.int64)
    for name in watch(tensors):
        bits = _bits(tensors[name])
        lower += torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low, _ = _bin_from_top(lower, left)
    return torch.tensor([high << 16 | low], dtype=torch.int32).view(torch.float32).item()


def reaches(value: Tensor, threshold: float) -> Tensor:
    """Which entries are at least as large as a threshold of `magnitude_threshold`, which compares in float32."""
    return value.abs().float() >= threshold


def require_share(name: str, value: float) -> None:
    """Refuse what is no share."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}; give a share from 0 to 1")


def _bits(value: Tensor) -> Tensor:
    return value.abs().float().flatten().contiguous().view(torch.int32)


def _bin_from_top(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin in which the `wanted`-th largest lies, and how many are wanted within it."""
    above = counts.flip(0).cumsum(0)
    place = int((above >= wanted).nonzero()[0])
    before = int(above[place - 1]) if place else 0
    return len(counts) - 1 - place, wanted - before
