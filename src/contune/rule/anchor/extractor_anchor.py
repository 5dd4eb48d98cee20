"""An anchor for the feature extractor alone, from the pretrained weights on (arXiv 2203.17269, section 4)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, final

from torch import Tensor

from contune.contract.capability import ANY_TRAINED, THROUGH_TASKS, Need
from contune.contract.context import Context
from contune.contract.parts import Rule
from contune.contract.state import State
from contune.rule.anchor.anchor import Anchor, fisher, snapshot


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
    needs: ClassVar[tuple[Need, ...]] = (THROUGH_TASKS & ANY_TRAINED,)
    idle: ClassVar[Mapping[str, object]] = {"strength": 0.0}

    def __init__(
        self,
        *,
        strength: Annotated[float, "factor of the penalty, from 0; grows with what is trained"] = 0.01,
        importance: Annotated[Literal["none", "fisher"], "weights count alike, or by Fisher information"] = "none",
        examples: Annotated[int, "examples of a task that Fisher information is measured on"] = 200,
    ) -> None:
        self.strength, self.importance, self.examples = strength, importance, examples
        self._anchor = Anchor()

    def begin_task(self, context: Context) -> None:
        if not self._anchor.values and self.importance == "none":
            self._anchor.move(of_the_adapter(snapshot(context)))

    def penalty(self, context: Context) -> Tensor | None:
        return self._anchor.pull(context, self.strength, weighed=self.importance == "fisher")

    def end_task(self, context: Context) -> None:
        if not context.model.adapter_trainable:
            return
        weighed = self.importance == "fisher"
        found = of_the_adapter(fisher(context, self.examples, "empirical")) if weighed else None
        self._anchor.move(of_the_adapter(snapshot(context)), found)

    def state(self) -> State:
        return self._anchor.state()

    def load_state(self, state: State, context: Context) -> None:
        self._anchor.load_state(state, context)
