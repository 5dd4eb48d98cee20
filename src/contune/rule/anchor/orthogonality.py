"""Orthogonality between the LoRA of the task and those of finished tasks (O-LoRA, arXiv 2310.14152, equation 8)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.capability import InputFactors, Need, require
from contune.contract.parts import Rule

if TYPE_CHECKING:
    from contune.contract.context import Context


def overlap(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over wrapped matrices of all |A_past A_t^T| entries (released code; the paper writes squares as well).

    >>> overlap([(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0], [-3.0, 0.0]]))]).item()
    3.0
    """
    return torch.stack([(past @ new.T).abs().sum() for past, new in pairs]).sum()


@final
class Orthogonality(Rule):
    """Adds `strength` times the overlap of the new LoRA's input directions with all earlier ones'.

    Only A is made orthogonal: the responses to old inputs change less, not nothing.

    Memory: nothing of its own.
    Compute: rank^2 x tasks x d_in per wrapped matrix and step.
    """

    name: ClassVar[str] = "orthogonality"
    needs: ClassVar[tuple[Need, ...]] = (InputFactors,)
    idle: ClassVar[Mapping[str, object]] = {"strength": 0.0}

    def __init__(
        self,
        *,
        strength: Annotated[float, "weight of the overlap with earlier tasks' input directions", "released code"] = 0.5,
    ) -> None:
        self.strength = strength

    def penalty(self, context: "Context") -> Tensor | None:
        pairs = require(context.model.adapter, InputFactors).pairs()
        return self.strength * overlap(pairs) if pairs and self.strength else None
