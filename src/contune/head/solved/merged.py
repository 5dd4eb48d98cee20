"""Class means or ridge regression on the features that an adapter will have once its task is merged (SoTU)."""

from typing import Annotated, ClassVar, Literal, final

from torch import Tensor

from contune.contract.capability import MergedLater, Need, require
from contune.contract.context import Context
from contune.contract.parts import Head, Parameters
from contune.contract.state import State
from contune.head.solved.class_means import ClassMeans
from contune.head.solved.ridge import Ridge


@final
class Merged(Head):
    """Learns each task in one pass over its features at the end, in the merged model of that time (SoTU, arXiv 2411.02813).

    A linear head over the task's own classes trains the adapter and is dropped. Later merges change the features, and
    what was learned before is not computed again, as no data of old tasks is at hand: old classes are answered from
    older features.

    Memory: that of the classifier.
    Compute: one more pass over each task in the merged model.
    """

    name: ClassVar[str] = "merged"
    needs: ClassVar[tuple[Need, ...]] = (MergedLater,)
    loss_over = "own-task"

    def __init__(
        self,
        *,
        classifier: Annotated[
            Literal["class-means", "ridge"], "what answers from the merged model's features"
        ] = "class-means",
        random_features: Annotated[int, Ridge] = 0,
        strength: Annotated[float | None, Ridge] = None,
    ) -> None:
        self.classifier = classifier
        self._inner: ClassMeans | Ridge = (
            ClassMeans() if classifier == "class-means" else Ridge(random_features=random_features, strength=strength)
        )

    def begin_task(self, context: Context) -> None:
        self._inner.begin_task(context)

    def trained(self) -> Parameters:
        return self._inner.trained()

    def training_logits(self, features: Tensor) -> Tensor:
        return self._inner.training_logits(features)

    def end_task(self, context: Context) -> None:
        with require(context.model.adapter, MergedLater).merged():
            self._inner.fit(context)
        self._inner.end_task(context)

    def logits(self, features: Tensor) -> Tensor:
        return self._inner.logits(features)

    def state(self) -> State:
        return self._inner.state()

    def load_state(self, state: State, context: Context) -> None:
        self._inner.load_state(state, context)
