"""Drawing tokens instead of taking the likeliest: every row of a batch draws from its own seed, whatever its company."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Sampling:
    """How the tokens of each row are drawn: among the `top` best, by a generator of the row's own seed.

    What a row has written already gets less likely by `penalty`; 1 leaves it as it is.
    """

    seeds: tuple[int, ...]
    top: int
    penalty: float = 1.0

    def take(self, places: Tensor) -> "Sampling":
        """The rows at `places` (n,), in that order."""
        return Sampling(tuple(self.seeds[place] for place in places.tolist()), self.top, self.penalty)


def penalised(scores: Tensor, written: Tensor, penalty: float) -> Tensor:
    """Scores (B, V) in which those of the tokens `written` (B, n) are divided by `penalty`, negative ones multiplied.

    CTRL (arXiv 1909.05858), section 4.1, in the form that text generation libraries use.

    >>> penalised(torch.tensor([[4.0, -1.0, 3.0]]), torch.tensor([[0, 1]]), 2.0).tolist()
    [[2.0, -2.0, 3.0]]
    """
    if penalty == 1 or not written.shape[1]:
        return scores
    own = scores.gather(1, written)
    return scores.scatter(1, written, torch.where(own < 0, own * penalty, own / penalty))


@final
class Draws:
    """Leaves of the scores (B, V) of one place after the other only the token that was drawn.

    So the likeliest of what is left is that token. The tokens before place `start` are not the row's own writing. One
    uniform number per row and place, from the CPU: equal seeds draw the same from equal scores on every device.
    """

    def __init__(self, sampling: Sampling, start: int) -> None:
        self._sampling, self._start = sampling, start
        self._generators = [torch.Generator().manual_seed(seed) for seed in sampling.seeds]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores = penalised(scores.float(), ids[:, self._start :], self._sampling.penalty)
        best, places = scores.topk(min(self._sampling.top, scores.shape[1]), dim=1)
        below = best.softmax(dim=1).cumsum(dim=1)
        numbers = torch.cat([torch.rand(1, generator=generator) for generator in self._generators])
        drawn = (below < numbers.to(below.device)[:, None]).sum(dim=1, keepdim=True).clamp(max=best.shape[1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(1, places.gather(1, drawn), 0.0)
