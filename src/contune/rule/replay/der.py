"""Dark experience replay: match the logits an example had when it was kept (DER++, arXiv 2004.07211)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.data import Batch, Outputs, Selection
from contune.contract.parts import Rule, Trait
from contune.contract.state import State
from contune.rule.replay.buffer import Rehearsal
from contune.rule.replay.replay import check_sizes, draw


def logit_distance(logits: Tensor, stored: Tensor) -> Tensor:
    """Mean squared difference (n,) over the columns that existed when the logits were stored (equation 4).

    >>> logit_distance(torch.tensor([[1.0, 5.0, 9.0]]), torch.tensor([[0.0, 5.0, float("nan")]])).item()
    0.5
    """
    known = ~stored.isnan()
    difference = torch.where(known, logits - stored.nan_to_num(), 0.0)
    return difference.square().sum(dim=1) / known.sum(dim=1)


@final
class DarkExperience(Rule):
    """Adds alpha x the distance to stored logits and beta x the loss on labels, on two draws of old examples (2004.07211).

    Memory: the examples and their logits.
    Compute: up to three times a step.
    Differs:
    - The logits are those at the end of the example's task, in the deterministic view, not those of the moment it was
      first trained on.
    """

    name = "der++"
    needs_traits: ClassVar[frozenset[Trait]] = frozenset({Trait.EXAMPLE_ROWS})
    idle: ClassVar[Mapping[str, object]] = {"alpha": 0.0, "beta": 0.0}

    def __init__(
        self,
        *,
        size: Annotated[int, "most examples kept, of all finished tasks together"] = 500,
        batch_size: Annotated[int, "old examples in each of the two draws of a step"] = 32,
        alpha: Annotated[float, "weight of the distance to stored logits; 0: none", "typical of the paper"] = 0.1,
        beta: Annotated[float, "weight of the loss on old labels; 0: DER, without them", "typical of the paper"] = 0.5,
    ) -> None:
        check_sizes(size, batch_size)
        self.size, self.batch_size, self.alpha, self.beta = size, batch_size, alpha, beta
        self._kept = Rehearsal()

    def begin_task(self, context: Context) -> None:
        self._kept.prepare(context)

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        chosen: dict[str, Selection] = {}
        if self._kept.ready is None:
            return chosen
        if self.alpha:
            chosen["der-logits"] = draw(self._kept.ready, self.batch_size, context, ("der-logits", epoch, step), 0.0)
        if self.beta:
            chosen["der-labels"] = draw(
                self._kept.ready, self.batch_size, context, ("der-labels", epoch, step), self.beta
            )
        return chosen

    def loss(self, context: Context, batch: Batch, outputs: Outputs) -> Tensor | None:
        place = batch.segments.get("der-logits")
        if place is None or self._kept.buffer is None or self._kept.buffer.logits is None or place.start == place.stop:
            return None
        rows = next(rows for dataset, rows in batch.parts if dataset is self._kept.ready)
        stored = self._kept.buffer.logits[torch.from_numpy(rows)].to(outputs.logits.device)
        distance = logit_distance(outputs.logits[place, : stored.shape[1]], stored)
        return self.alpha * batch.mean(distance, "der-logits")

    def end_task(self, context: Context) -> None:
        logits = context.passes.logits(context.task.data)
        self._kept.offer_reservoir(context, self.size, logits)

    def state(self) -> State:
        return self._kept.state()

    def load_state(self, state: State, context: Context) -> None:
        self._kept.load_state(state, context)
