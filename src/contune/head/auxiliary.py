"""A head trained by gradient that a closed-form head lends to an adapter while it trains, and drops afterwards."""

from typing import Literal, final

from torch import Tensor

from contune.contract.context import Context
from contune.contract.parts import Parameters
from contune.contract.state import State
from contune.head.linear import Cosine, Linear

START_SCALE = 1.0  # where a cosine head's learnt factor starts (APER, 2303.07338)
Kind = Literal["linear", "cosine"]


def auxiliary_head(kind: Kind) -> Linear | Cosine:
    """A head of this kind that has seen no task.

    >>> auxiliary_head("cosine").name
    'cosine'
    """
    return Linear() if kind == "linear" else Cosine(scale=START_SCALE)


@final
class Auxiliary:
    """The lent head: it grows where the adapter trains in a task that begins, and is another one after the task."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._head = auxiliary_head(kind)

    def begin_task(self, context: Context) -> None:
        """Grow to the columns of the task, where the adapter trains."""
        if context.model.adapter_trainable and context.model.adapter.trained():
            self._head.begin_task(context)

    def trained(self) -> Parameters:
        """What is trained of it."""
        return self._head.trained()

    def logits(self, features: Tensor) -> Tensor:
        """Scores (B, seen)."""
        return self._head.logits(features)

    def drop(self) -> None:
        """Forget what it learned."""
        self._head = auxiliary_head(self._kind)

    def tensors(self) -> dict[str, Tensor]:
        """Its state, as part of the state of the head that lends it."""
        return dict(State.nested({"lent": self._head.state()}).tensors)

    def load(self, state: State, context: Context) -> None:
        """Take it back from the state of the head that lends it."""
        own = state.inner("lent")
        if own.tensors:
            self._head.load_state(own, context)
