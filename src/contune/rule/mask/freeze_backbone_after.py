"""The adapter learns for the first epochs of the first task and then keeps every bit (SEQ*, arXiv 2312.07887)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, final

from contune.contract.context import Context
from contune.contract.data import Selection
from contune.contract.parts import Phase, Rule, Tensors
from contune.errors import ConfigError


@final
class FreezeBackboneAfter(Rule):
    """The adapter learns in the first epochs of the first task alone; the head learns in all of them (arXiv 2312.07887).

    Adapter tensors are left out of the gradients, so that no momentum, decay or optimizer memory moves them. With
    adapt: first-task the features of later tasks are computed once and kept.

    Memory: nothing.
    Compute: nothing of its own; less, where features are kept once the adapter rests.
    """

    name: ClassVar[str] = "freeze-backbone-after"
    phase: ClassVar[Phase] = Phase.VETOES

    def __init__(
        self,
        *,
        epochs: Annotated[int, "epochs of the first task in which it learns; 0: none", "released code"] = 3,
    ) -> None:
        if epochs < 0:
            raise ConfigError(f"epochs is {epochs}; give 0 or more, 0 for an adapter that never learns")
        self.epochs = epochs
        self._resting = False

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        self._resting = context.task.index > 0 or epoch >= self.epochs  # told anew at each step: there is no state
        return {}

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        if not self._resting:
            return gradients
        return {name: value for name, value in gradients.items() if not name.startswith("adapter.")}
