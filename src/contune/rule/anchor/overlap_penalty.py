"""Self-regularisation: a new LoRA may change a weight little where earlier ones changed it much (C-LoRA, 2304.06027)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.capability import Need, TaskFactors, require
from contune.contract.context import Context
from contune.contract.parts import Rule

Factors = tuple[Tensor, Tensor]


def interference(pairs: Sequence[tuple[Factors, Factors]]) -> Tensor:
    """Sum over matrices of || |sum of old B A| * (B A) ||_F^2, * by entries, of ((A, B) old and stacked, (A, B) new).

    Old updates of opposite signs cancel before the absolute value is taken (C-LoRA, equation for the forgetting loss).

    >>> old = (torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0]]))
    >>> new = (torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0]]))
    >>> interference([(old, new)]).item()
    36.0
    """
    return torch.stack([((b_old @ a_old) * (b @ a)).square().sum() for (a_old, b_old), (a, b) in pairs]).sum()


@final
class OverlapPenalty(Rule):
    """Penalises, entry by entry, what the new LoRA changes where earlier ones changed much (C-LoRA, arXiv 2304.06027).

    The penalty is the square of: change by the new LoRA times size of the change by all earlier ones. Updates are
    measured as they are added to the weights, alpha / rank included.

    Memory: nothing of its own.
    Compute: for every wrapped matrix a step multiplies out all finished LoRAs, rank x tasks x d_in x d_out.
    """

    name: ClassVar[str] = "overlap-penalty"
    needs: ClassVar[tuple[Need, ...]] = (TaskFactors,)
    idle: ClassVar[Mapping[str, object]] = {"strength": 0.0}

    def __init__(
        self,
        *,
        strength: Annotated[float, "factor of the penalty, which has an update's size to the fourth power"] = 1e4,
    ) -> None:
        self.strength = strength

    def penalty(self, context: Context) -> Tensor | None:
        adapter = require(context.model.adapter, TaskFactors)
        finished, new = adapter.factors(finished=True), adapter.factors()
        if not self.strength or not finished or not context.model.adapter_trainable:
            return None
        scale = adapter.scale**4  # each of the two updates has it once, and both are squared
        return self.strength * scale * interference([(finished[name], new[name]) for name in sorted(finished)])
