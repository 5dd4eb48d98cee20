"""An anchor for the feature extractor alone, from the pretrained weights on (arXiv 2203.17269, section 4)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, final

from torch import Tensor

from contune.contract.context import Context
from contune.contract.parts import Adapter, Head, Rule
from contune.contract.state import State
from contune.rule.anchor.anchor import (
    added,
    anchor_from_state,
    anchor_state,
    anchored_distance,
    fisher,
    refuse_anchoring,
    snapshot,
)


def of_the_adapter(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors that the adapter trains; the head is not held back.

    >>> list(of_the_adapter({"adapter.a": Tensor(), "head.weight": Tensor()}))
    ['adapter.a']
    """
    return {name: tensor for name, tensor in tensors.items() if name.startswith("adapter.")}


@final
class ExtractorAnchor(Rule):
    """Adds strength * sum F (theta - theta_prev)^2 over what the adapter trains, theta_prev as the last task left it.

    arXiv 2203.17269, section 4. With importance `none` F is 1 and the pull starts in the first task, towards the
    pretrained model (L2). With `fisher` it is the Fisher information of the finished tasks' true labels, gradients of
    single examples, summed over tasks without decay (EWC), and the first task is free. A sum, not a mean: the strength
    depends on how much is trained.

    Memory: what the adapter trains once more, twice with `fisher`.
    Compute: one sum a step, and with `fisher` `examples` backward passes a task.
    """

    name: ClassVar[str] = "extractor-anchor"
    idle: ClassVar[Mapping[str, object]] = {"strength": 0.0}

    def __init__(
        self,
        *,
        strength: Annotated[float, "factor of the penalty, from 0; grows with what is trained"] = 0.01,
        importance: Annotated[Literal["none", "fisher"], "weights count alike, or by Fisher information"] = "none",
        examples: Annotated[int, "examples of a task that Fisher information is measured on"] = 200,
    ) -> None:
        self.strength, self.importance, self.examples = strength, importance, examples
        self._anchor: dict[str, Tensor] = {}
        self._fisher: dict[str, Tensor] = {}

    def refuses(self, adapter: Adapter, head: Head) -> str | None:
        del head
        if adapter.name == "none":
            return (
                "rule 'extractor-anchor' holds the feature extractor back, but adapter 'none' never moves it; leave the "
                "rule out, or set adapter: attention"
            )
        return refuse_anchoring(self.name, adapter)

    def begin_task(self, context: Context) -> None:
        if not self._anchor and self.importance == "none":
            self._anchor = of_the_adapter(snapshot(context))

    def penalty(self, context: Context) -> Tensor | None:
        if not self.strength or not self._anchor:
            return None
        importance = None if self.importance == "none" else self._fisher
        return self.strength * anchored_distance(context.model.trained(), self._anchor, importance)

    def end_task(self, context: Context) -> None:
        if not context.model.adapter_trainable:
            return
        if self.importance == "fisher":
            new = of_the_adapter(fisher(context, self.examples, "empirical"))
            self._fisher = added(self._fisher, new)
        self._anchor = of_the_adapter(snapshot(context))

    def state(self) -> State:
        return anchor_state(self._anchor, self._fisher)

    def load_state(self, state: State, context: Context) -> None:
        self._anchor, self._fisher = anchor_from_state(state, context)
