"""Rows of classes to come compete in the loss, so that they are out of the way when they come (SEQ*, arXiv 2312.07887)."""

from typing import ClassVar, final

import torch
from torch import Tensor

from contune.contract.capability import Need, ReservedRows, require
from contune.contract.context import Context
from contune.contract.data import Batch, Outputs
from contune.contract.parts import Rule
from contune.numerics.averages import row_mean


def crowding(seen: Tensor, reserved_rows: Tensor) -> Tensor:
    """What cross-entropy over the scores (B, C) rises by per row (B,) when the spare scores (B, S) compete as well.

    log sum exp(seen and spare) - log sum exp(seen), whatever the label.

    >>> seen, spare, label = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0]]), torch.tensor([1])
    >>> apart = torch.nn.functional.cross_entropy(seen, label) + crowding(seen, spare).mean()
    >>> torch.allclose(apart, torch.nn.functional.cross_entropy(torch.cat([seen, spare], dim=1), label))
    True
    """
    both = torch.logsumexp(torch.cat([seen, reserved_rows], dim=1), dim=1)
    return both - torch.logsumexp(seen, dim=1)


@final
class Preallocation(Rule):
    """Adds the spare rows of head frozen-rows to the classes that compete in the loss.

    In task-incremental streams nothing is added: there the paper trains every task over its own classes. No state.

    Memory: nothing of its own.
    Compute: the scores of the reserved rows.
    """

    name: ClassVar[str] = "preallocation"
    needs_of_head: ClassVar[tuple[Need, ...]] = (ReservedRows,)

    def loss(self, context: Context, batch: Batch, outputs: Outputs) -> Tensor | None:
        head = require(context.model.head, ReservedRows)
        if not head.reserved_rows or context.model.tasks_named:
            return None
        seen = outputs.logits.masked_fill(~context.model.class_mask(batch.tasks), float("-inf"))
        return row_mean(crowding(seen, head.reserved_logits(outputs.features)), batch.counts, len(batch))
