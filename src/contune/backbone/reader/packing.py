"""Several short texts in one row of a batch, none of which sees another, so that less padding is computed.

A batch stays as it is, one text a row; only where its tokens go through the model do texts stand behind one another.
Positions begin again at 0 with every text. From that stock models know the texts of a row apart: their masks keep each to
itself (`find_packed_sequence_indices` in `masking_utils` of transformers), a sliding window counts within a text, and
rotary as well as learned positions are those of the text alone. Whether a model does so is found by comparing.

Shapes: B texts of at most L tokens, N tokens in all; R rows of P positions; d width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from contune.errors import CombinationError, ConfigError

WIDER = (1, 2, 4, 8)  # rows that are tried, as multiples of the longest text
TOLERANCE = 1e-4  # between states of a text alone and in company, relative to their size


@final
@dataclass(frozen=True, eq=False)
class Packing:
    """Where the tokens of texts (B, L) stand in shared rows (R, P).

    `positions` (R, P) of every token in its own text; padding stands at 0, each piece a text of its own, that is seen by
    none. `apart` (N,) are the places of all tokens among B * L, `shared` (N,) the same ones among R * P.
    """

    texts: tuple[int, int]
    positions: Tensor
    apart: Tensor
    shared: Tensor

    def pack(self, values: Tensor) -> Tensor:
        """Values (R, P, ...) of shared rows from those (B, L, ...) of texts; 0 at padding."""
        return _moved(values, self.apart, self.shared, self.texts, tuple(self.positions.shape))

    def unpack(self, values: Tensor) -> Tensor:
        """Values (B, L, ...) of texts from those (R, P, ...) of shared rows; 0 at padding."""
        return _moved(values, self.shared, self.apart, tuple(self.positions.shape), self.texts)


def _moved(values: Tensor, source: Tensor, target: Tensor, given: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    if tuple(values.shape[:2]) != given:
        raise CombinationError(
            f"values of {tuple(values.shape[:2])} rows and positions came where texts that share rows have {given}: what is "
            "attached to the model adds positions or rows; set train.packing: false"
        )
    flat = values.new_zeros(wanted[0] * wanted[1], *values.shape[2:])
    filled = flat.index_copy(0, target, values.flatten(0, 1).index_select(0, source))
    return filled.reshape(*wanted, *values.shape[2:])


def bins(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Texts by shared row, each row at most `limit` tokens: the longest first, each into the first row with room.

    >>> bins([3, 5, 2, 4], 7)
    [[1, 2], [3, 0]]
    """
    rows: list[list[int]] = []
    rooms: list[int] = []
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        length = lengths[text]
        if length > limit:
            raise ValueError(f"text {text} has {length} tokens, more than the {limit} of a row")
        at = next((at for at, room in enumerate(rooms) if room >= length), len(rows))
        if at == len(rows):
            rows.append([])
            rooms.append(limit)
        rows[at].append(text)
        rooms[at] -= length
    return rows


def cost(rows: Sequence[Sequence[int]], lengths: Sequence[int], width: int) -> int:
    """What a layer of this width computes for these rows, in products: 24 d^2 + 4 P d a position, divided by 4 d.

    >>> cost([[0], [1]], [4, 2], 8), cost([[0, 1]], [4, 2], 8)
    (416, 324)
    """
    longest = max(sum(lengths[text] for text in row) for row in rows)
    return len(rows) * longest * (longest + 6 * width)


def shared_rows(lengths: Sequence[int], most: int, width: int) -> list[list[int]]:
    """The cheapest of the ways to share rows as long as the longest text or a few times that, at most `most` tokens.

    One text a row is among them, so this never computes more than padding would; longer rows waste fewer positions and
    cost more attention.

    >>> shared_rows([6, 4, 4, 4], most=100, width=8)
    [[0, 1], [2, 3]]
    >>> shared_rows([5, 5], most=5, width=8)
    [[0], [1]]
    """
    longest = max(lengths)
    limits = dict.fromkeys(max(longest, min(times * longest, most)) for times in WIDER)
    ways = [[[text] for text in range(len(lengths))], *(bins(lengths, limit) for limit in limits)]
    return min(ways, key=lambda rows: cost(rows, lengths, width))


def packing_of(
    lengths: Sequence[int], rows: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> Packing | None:
    """How these texts stand in these rows, one behind another; None where none shares its row.

    >>> packing = packing_of([1, 2], [[1, 0]])
    >>> packing.pack(torch.tensor([[7, 0], [8, 9]])).tolist(), packing.positions.tolist()
    ([[8, 9, 7]], [[0, 1, 0]])
    """
    if len(rows) == len(lengths):
        return None
    length, longest = max(lengths), max(sum(lengths[text] for text in row) for row in rows)
    positions = np.zeros((len(rows), longest), dtype=np.int64)
    apart, shared = [], []
    for number, row in enumerate(rows):
        start = 0
        for text in row:
            own = np.arange(lengths[text])
            positions[number, start : start + len(own)] = own
            apart.append(text * length + own)
            shared.append(number * longest + start + own)
            start += len(own)
    where, places, moved = (
        torch.from_numpy(found).to(device) for found in (positions, np.concatenate(apart), np.concatenate(shared))
    )
    return Packing((len(lengths), length), where, places, moved)


def require_packing(forward: Callable[..., Tensor], words: int, device: torch.device, name: str) -> None:
    """Refuse a model in which the texts of a row are not kept apart; found with three texts, alone and in company.

    `forward` gives states (R, P, d) of named inputs, `words` is the size of the vocabulary.
    """
    lengths = [4, 2, 3]
    ids = (torch.arange(12, device=device) % words).reshape(3, 4)
    mask = torch.arange(4, device=device) < torch.tensor(lengths, device=device).unsqueeze(1)
    packing = packing_of(lengths, [[0, 1], [2]], device)
    assert packing is not None
    with torch.no_grad():
        alone = forward(input_ids=ids, attention_mask=mask)[mask]
        try:
            rows = forward(input_ids=packing.pack(ids), position_ids=packing.positions)
        except TypeError:
            raise ConfigError(f"{name} takes no positions of tokens, so {_ALONE}") from None
        far = float((packing.unpack(rows)[mask] - alone).abs().max())
    if not far <= TOLERANCE * float(alone.abs().max()) + TOLERANCE:
        raise ConfigError(f"{name} lets texts of one row see each other, or counts positions across them, so {_ALONE}")


_ALONE = "every text needs a row of its own; set train.packing: false"
