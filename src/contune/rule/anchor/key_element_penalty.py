"""Key entries: where the updates of finished tasks were largest, new ones are pulled to zero (SEFE, arXiv 2505.02486)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.capability import Need, TaskFactors, require
from contune.contract.context import Context
from contune.contract.parts import Rule
from contune.contract.state import State, on_device
from contune.errors import ConfigError

SLACK = 1e-9  # a share such as 0.29 of 100 entries is 28.999... in floating point
WIDEST = torch.iinfo(torch.int32).max


def largest_entries(product: Tensor, share: float) -> Tensor:
    """Places, row by row and in order, of the floor(share d_out d_in) entries of (d_out, d_in) of the largest size.

    >>> largest_entries(torch.tensor([[0.0, -3.0], [2.0, 1.0]]), 0.5).tolist()
    [1, 2]
    """
    count = int(share * product.numel() + SLACK)
    places = product.abs().reshape(-1).topk(count).indices.sort().values
    return places.to(torch.int32 if product.numel() <= WIDEST else torch.int64)


def union(first: Tensor | None, second: Tensor) -> Tensor:
    """Places that are in either, each once, in order.

    >>> union(torch.tensor([1, 4]), torch.tensor([1, 2])).tolist()
    [1, 2, 4]
    """
    return second if first is None else torch.unique(torch.cat([first, second]))


def mean_size(factors: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Mean over matrices of the mean size of B A at their places; each is A (r, d_in), B (d_out, r), places (n,).

    >>> mean_size([(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]]), torch.tensor([0, 3]))]).item()
    2.5
    """
    return torch.stack([(b @ a).reshape(-1)[places.long()].abs().mean() for a, b, places in factors]).mean()


@final
class KeyElementPenalty(Rule):
    """Adds `strength` times the mean size of the new update at the largest entries of finished tasks' updates (RegLoRA).

    After each task the `share` of the entries of |B A| that are largest join the places of its matrix: a set, so that a
    place that was large twice counts once, as in the paper (SEFE, arXiv 2505.02486); the released code lists it twice.
    Entries are those of B A without the factor alpha / rank, as in that code. The mean is over the places of a matrix,
    then over the matrices that have any. Where an update was large is not where the old loss is sensitive: that is the
    paper's choice. In the first task there is no place and no term.

    Memory: a 4-byte number per place, at most the entries of the matrix however many tasks.
    Compute: the product B A of every wrapped matrix per step.
    """

    name: ClassVar[str] = "key-element-penalty"
    needs: ClassVar[tuple[Need, ...]] = (TaskFactors,)
    idle: ClassVar[Mapping[str, object]] = {"strength": 0.0}

    def __init__(
        self,
        *,
        strength: Annotated[float, "factor of the mean size at key entries, from 0", "released, 7B model"] = 2500.0,
        share: Annotated[float, "part of each matrix's entries that a task marks, 0 to 1", "released code"] = 0.02,
    ) -> None:
        if strength < 0:
            raise ConfigError(f"strength is {strength}; give at least 0")
        if not 0 <= share <= 1:
            raise ConfigError(f"share is {share}; give a number from 0 to 1, the part of each matrix's entries")
        self.strength, self.share = strength, share
        self._places: dict[str, Tensor] = {}

    def penalty(self, context: Context) -> Tensor | None:
        if not self.strength or not context.model.adapter_trainable:
            return None
        adapter = require(context.model.adapter, TaskFactors)
        held = [(a, b, self._places[name]) for name, (a, b) in adapter.factors().items() if name in self._places]
        return self.strength * mean_size(held) if held else None

    def end_task(self, context: Context) -> None:
        adapter = require(context.model.adapter, TaskFactors)
        for name, (a, b) in adapter.factors().items() if context.model.adapter_trainable else ():
            found = largest_entries(b.detach() @ a.detach(), self.share)
            if len(found):
                self._places[name] = union(self._places.get(name), found)

    def state(self) -> State:
        return State(dict(self._places))

    def load_state(self, state: State, context: Context) -> None:
        self._places = on_device(state.tensors, context.model.backbone.device)
