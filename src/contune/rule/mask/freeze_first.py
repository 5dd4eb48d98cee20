"""The adapter rests while each new task begins, and the head settles first (LAE, arXiv 2303.10070)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, final

from contune.contract.context import Context
from contune.contract.data import Selection
from contune.contract.parts import Phase, Rule, Tensors
from contune.errors import ConfigError

SLACK = 1e-9  # a share such as 0.29 of 100 epochs is 28.999... in floating point


def frozen_epochs(epochs: int, share: float, fixed: int | None) -> int:
    """How many of a task's epochs the adapter rests: `fixed`, or the share of them, rounded down.

    >>> frozen_epochs(5, 0.6, None), frozen_epochs(50, 0.6, None), frozen_epochs(5, 0.6, 1)
    (3, 30, 1)
    """
    return int(share * epochs + SLACK) if fixed is None else fixed


@final
class FreezeFirst(Rule):
    """In every task after the first, adapter tensors keep every bit for the first epochs; the head alone learns there.

    LAE (arXiv 2303.10070), whose released configurations rest 3 of 5, and 30 of 50 epochs. Where `epochs` is all of
    them, the adapter learns in the first task only. The tensors are left out of the gradients, so that no momentum,
    decay or optimizer memory moves them.

    Memory: nothing.
    Compute: nothing of its own.
    """

    name: ClassVar[str] = "freeze-first"
    phase: ClassVar[Phase] = Phase.VETOES
    idle: ClassVar[Mapping[str, object]] = {"share": 0.0}

    def __init__(
        self,
        *,
        share: Annotated[float, "share of a later task's epochs in which it rests, 0 to 1", "released code"] = 0.6,
        epochs: Annotated[int | None, "how many epochs it rests, in place of a share; null: the share"] = None,
    ) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"share is {share}; give a number from 0 to 1, the part of each task's epochs")
        if epochs is not None and epochs < 0:
            raise ConfigError(f"epochs is {epochs}; give 0 or more")
        self.share, self.epochs = share, epochs
        self._resting = False

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        first = frozen_epochs(context.task.epochs, self.share, self.epochs)
        self._resting = context.task.index > 0 and epoch < first  # told anew at each step, so there is no state to save
        return {}

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        if not self._resting:
            return gradients
        return {name: value for name, value in gradients.items() if not name.startswith("adapter.")}
