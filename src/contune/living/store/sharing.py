"""Which rows of something new were in its predecessor: a pool of rows by blocks, and places in it. Pure functions.

A head that grows by rows, an adapter that grows by rank, a buffer in which some examples give way to new ones: each holds
most rows of what it was before. What is stored of it is the blocks that still serve, one block of new rows, and the order.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

MOST_BLOCKS = 32  # of one tensor; beyond, all rows are written anew as one
LEAST_USED = 0.25  # share of a block's rows that must serve, else they are written anew


@final
@dataclass(frozen=True, eq=False)
class Sharing:
    """`blocks` are the places of the old blocks that serve, `new` the rows that no block has, in one new block after them.

    Row i is row `order[i]` of those blocks strung together; `order` is None where that is i.
    """

    blocks: tuple[int, ...]
    new: tuple[int, ...]
    order: NDArray[np.int32] | None


def shared(rows: Sequence[Hashable], before: Sequence[Sequence[Hashable]]) -> Sharing:
    """How `rows` are made of the blocks `before` and of new rows.

    >>> found = shared(["a", "c", "d"], [["a", "b"], ["x"]])
    >>> found.blocks, found.new, found.order.tolist()
    ((0,), (1, 2), [0, 2, 3])
    >>> shared(["a", "b", "c"], [["a", "b"]]).order is None
    True
    """
    home = {row: block for block, own in enumerate(before) for row in own}
    wanted = [home.get(row, -1) for row in rows]
    served = np.bincount([block for block in wanted if block >= 0], minlength=len(before))
    used = [block for block, own in enumerate(before) if served[block] and served[block] >= LEAST_USED * len(own)]
    if len(used) >= MOST_BLOCKS:
        used = []
    place = _places([before[block] for block in used])
    count, order = sum(len(before[block]) for block in used), np.zeros(len(rows), np.int32)
    new: list[int] = []
    for at, row in enumerate(rows):
        if row not in place:
            place[row] = count + len(new)
            new.append(at)
        order[at] = place[row]
    same = len(order) == count + len(new) and bool((order == np.arange(len(order))).all())
    return Sharing(tuple(used), tuple(new), None if same else order)


def _places(blocks: Sequence[Sequence[Hashable]]) -> dict[Hashable, int]:
    """Where each row first is in the blocks strung together."""
    found: dict[Hashable, int] = {}
    start = 0
    for block in blocks:
        for at, row in enumerate(block):
            found.setdefault(row, start + at)
        start += len(block)
    return found
