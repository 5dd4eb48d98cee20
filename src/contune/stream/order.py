"""Who comes when: the class order, the cut into tasks, and the split of one class's examples. Pure functions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from contune.errors import ConfigError


def arrival_order(count: int, order_seed: int | None) -> list[int]:
    """Ids 0..count-1 in the order in which they arrive; without a seed, as declared.

    >>> arrival_order(5, None)
    [0, 1, 2, 3, 4]
    >>> arrival_order(5, 0)
    [2, 4, 3, 0, 1]
    """
    if order_seed is None:
        return list(range(count))
    return [int(item) for item in np.random.default_rng(order_seed).permutation(count)]


def task_sizes(classes: int, tasks: int | None, sizes: Sequence[int] | None) -> list[int]:
    """Classes per task: as given, or equal with the first tasks one larger where `tasks` does not divide `classes`.

    Raises ConfigError where the numbers cannot be met.

    >>> task_sizes(10, 4, None)
    [3, 3, 2, 2]
    """
    if sizes is not None:
        if sum(sizes) != classes:
            raise ConfigError(
                f"stream.sizes is {list(sizes)}, which sums to {sum(sizes)}, but the data has {classes} classes; "
                "give sizes that sum to it"
            )
        return list(sizes)
    if tasks is None:
        raise ConfigError(
            f"neither stream.tasks nor stream.sizes is given; say into how many tasks the {classes} classes are cut "
            "(or name a column that groups them with stream.by)"
        )
    if tasks > classes:
        raise ConfigError(
            f"stream.tasks is {tasks} but the data has only {classes} classes; give at most {classes}, "
            "so that every task brings a class"
        )
    small, larger = divmod(classes, tasks)
    return [small + 1] * larger + [small] * (tasks - larger)


def cut(order: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Consecutive pieces of `order` with the given sizes.

    >>> cut([4, 2, 3, 1, 0], [2, 2, 1])
    [[4, 2], [3, 1], [0]]
    """
    ends = np.cumsum(sizes).tolist()
    return [list(order[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def split_rows(
    count: int, *, share: float, keep: int | None, seed: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions 0..count-1 of one class as (training, validation), each ascending and disjoint.

    At most `keep` are used at all; `share` of them, rounded to the nearest whole number, go to validation, but never
    the last training example. A smaller `keep` chooses a subset of what a larger one chooses.
    """
    chosen = np.random.default_rng(list(seed)).permutation(count)[:keep].astype(np.int64)
    held_out = min(int(np.floor(share * len(chosen) + 0.5)), max(len(chosen) - 1, 0))
    border = len(chosen) - held_out
    return np.sort(chosen[:border]), np.sort(chosen[border:])
