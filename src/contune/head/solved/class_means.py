"""Nearest class mean: one vector per class, the mean of its features (arXiv 2210.04428; SimpleCIL in 2303.07338)."""

from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from contune.contract.context import Context
from contune.contract.parts import Head, Parameters
from contune.contract.state import State
from contune.errors import DataError
from contune.head.linear import Auxiliary
from contune.numerics.averages import summed_blocks


def nearest_mean_scores(features: Tensor, means: Tensor, metric: str) -> Tensor:
    """Scores (n, classes): the cosine to each mean, or minus the squared Euclidean distance.

    The mean is taken of features as they are and normalised afterwards, not the other way round.
    """
    if metric == "cosine":
        return functional.normalize(features, dim=1) @ functional.normalize(means, dim=1).T
    return -torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist").square()


def require_learned(learned: Tensor, forgotten: Tensor) -> None:
    """Refuse to take out more examples (classes,) of a class than were learned."""
    if (forgotten > learned).any():
        column = int((forgotten > learned).nonzero()[0, 0])
        raise DataError(
            f"class {column} has {int(learned[column])} learned examples and {int(forgotten[column])} are to be forgotten; "
            "give only examples that were learned, each once"
        )


@final
class ClassMeans(Head):
    """The class with the nearest mean feature answers (arXiv 2210.04428; SimpleCIL in arXiv 2303.07338).

    Sums are kept in float64, so order and batch size do not matter. While an adapter trains (first-task adaptation),
    the `auxiliary` head trains it: linear, or cosine with a learnt factor that starts at 1 (APER).

    Memory: d sums and a count per class.
    Compute: one forward pass over every example.
    """

    name: ClassVar[str] = "class-means"
    closed_form: ClassVar[bool] = True
    takes_modules: ClassVar[Literal["one", "fixed", "growing"]] = "fixed"

    def __init__(
        self,
        *,
        metric: Annotated[Literal["cosine", "euclidean"], "how near a feature is to a mean", "SimpleCIL"] = "cosine",
        auxiliary: Annotated[
            Literal["linear", "cosine"], "head that trains a first-task adapter, then dropped"
        ] = "linear",
    ) -> None:
        self.metric, self.auxiliary = metric, auxiliary
        self._sums = torch.zeros(0, 0, dtype=torch.float64)
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._lent = Auxiliary(auxiliary)

    def begin_task(self, context: Context) -> None:
        width = context.model.feature_size()
        sums = torch.zeros(context.task.seen, width, dtype=torch.float64)
        counts = torch.zeros(context.task.seen, dtype=torch.int64)
        if len(self._counts):
            sums[: len(self._sums)], counts[: len(self._counts)] = self._sums, self._counts
        self._sums, self._counts = sums, counts
        self._lent.begin_task(context)

    def trained(self) -> Parameters:
        return self._lent.trained()

    def training_logits(self, features: Tensor) -> Tensor:
        return self._lent.logits(features)

    def fit(self, context: Context) -> None:
        sums, counts = self._summed(context)
        self._sums, self._counts = self._sums + sums, self._counts + counts

    def forget(self, context: Context) -> None:
        sums, counts = self._summed(context)
        require_learned(self._counts, counts)
        self._sums, self._counts = self._sums - sums, self._counts - counts
        self._sums[self._counts == 0] = 0.0

    def _summed(self, context: Context) -> tuple[Tensor, Tensor]:
        blocks = context.passes.feature_blocks(context.task.data)
        return summed_blocks(blocks, context.task.data.labels, len(self._counts), context.model.feature_size())

    def end_task(self, context: Context) -> None:
        del context
        self._lent.drop()

    def logits(self, features: Tensor) -> Tensor:
        means = self._sums / self._counts.clamp(min=1).unsqueeze(1)
        scores = nearest_mean_scores(features.double().cpu(), means, self.metric)
        return scores.masked_fill(self._counts == 0, float("-inf")).float()

    def state(self) -> State:
        return State({"sums": self._sums, "counts": self._counts, **self._lent.tensors()})

    def load_state(self, state: State, context: Context) -> None:
        self._sums, self._counts = state.tensors["sums"], state.tensors["counts"]
        self._lent.load(state, context)
