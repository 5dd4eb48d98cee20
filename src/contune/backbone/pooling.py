"""From the states of all positions to one vector per input; prompts and padding never count.

Shapes: B rows, L positions of which the first n are prompts, d width.
"""

import torch
from torch import Tensor

from contune.backbone.config import Feature
from contune.backbone.reader.inputs import Encoded


def pool(states: Tensor, mask: Tensor | None, *, prompts: int, feature: Feature, leading: int = 0) -> Tensor:
    """One vector (B, d) per row of `states` (B, L, d); `mask` (B, L) is true on prompts and tokens.

    `leading` positions after the prompts are no patches (class token, registers): the mean leaves them out.

    >>> states = torch.tensor([[[9.0], [1.0], [3.0], [7.0]]])
    >>> mask = torch.tensor([[True, True, True, False]])
    >>> [pool(states, mask, prompts=1, feature=f).item() for f in ("class-token", "mean", "last-token")]
    [1.0, 2.0, 3.0]
    """
    own = states[:, prompts:]
    own_mask = None if mask is None else mask[:, prompts:]
    if feature == "class-token":
        return own[:, 0]
    if feature == "mean":
        return own[:, leading:].mean(1) if own_mask is None else masked_mean(own, own_mask)
    if own_mask is None:
        return own[:, -1]
    positions = torch.arange(own.shape[1], device=own.device)
    last = (positions * own_mask).argmax(1)
    return own[torch.arange(len(own), device=own.device), last]


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean (B, d) over the positions where `mask` (B, L) is true; every row has at least one."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1)


def before_targets(encoded: Encoded, targets: Tensor) -> Tensor:
    """The states (T, d) one position before each of the `targets` (B, L), row by row: what predicts those tokens.

    >>> states = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> before_targets(Encoded(states, None, 0), torch.tensor([[False, True, True]])).flatten().tolist()
    [1.0, 2.0]
    """
    own = encoded.states[:, encoded.prompts :]
    return own[:, :-1][targets[:, 1:]]
