"""The reverse half of symmetric cross-entropy (arXiv 1908.06112), as SLCA++ trains with it (arXiv 2408.08295)."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.data import TASK, Batch, Outputs
from contune.contract.parts import Rule

LABEL_FLOOR = 1e-4  # what a label of 0 is clamped to (released code; A = log of it in the paper)


def reverse_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-sum_k p_k log max(onehot_k, 1e-4) for every row (n,): that is -log(1e-4) (1 - p_label).

    >>> round(reverse_cross_entropy(torch.zeros(1, 2), torch.tensor([0])).item(), 4) == round(-math.log(1e-4) / 2, 4)
    True
    """
    probabilities = torch.softmax(logits, dim=1)
    return -math.log(LABEL_FLOOR) * (1 - probabilities.gather(1, labels.unsqueeze(1)).squeeze(1))


@final
class ReverseCrossEntropy(Rule):
    """Adds `weight` times the reverse cross-entropy of the task's own rows, over the classes that compete in the loss.

    Memory: nothing.
    Compute: one sum over the scores.
    """

    name: ClassVar[str] = "reverse-cross-entropy"
    idle: ClassVar[Mapping[str, object]] = {"weight": 0.0}

    def __init__(
        self,
        *,
        weight: Annotated[float, "weight of the reverse cross-entropy, from 0", "released code"] = 0.1,
    ) -> None:
        self.weight = weight

    def loss(self, context: Context, batch: Batch, outputs: Outputs) -> Tensor | None:
        place = batch.segments[TASK]
        if not self.weight or place.start == place.stop:
            return None
        mask = context.model.class_mask(batch.tasks)
        logits = outputs.logits.masked_fill(~mask, float("-inf"))[place]
        return self.weight * batch.mean(reverse_cross_entropy(logits, batch.labels[place]))
