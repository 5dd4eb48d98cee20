"""Gaussians with one shared covariance: the module of the likeliest one answers (distance of arXiv 1807.03888)."""

from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.contract.parts import Router
from contune.contract.state import State
from contune.errors import ConfigError
from contune.router.keys import own_module


def grouped_scatter(points: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (k, d) of every group, and the sum (d, d) of squared deviations from the own group's mean; float64.

    >>> grouped_scatter(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 0, 4]))[1].item()
    2.0
    """
    rows = points.double()
    names, place = torch.unique(groups, return_inverse=True)
    sums = rows.new_zeros(len(names), rows.shape[1]).index_add_(0, place, rows)
    means = sums / torch.bincount(place, minlength=len(names)).unsqueeze(1)
    centred = rows - means[place]
    return means, centred.T @ centred


def squared_distances(points: Tensor, means: Tensor, covariance: Tensor) -> Tensor:
    """(x - m)^T C^-1 (x - m) for points (n, d) and means (k, d): (n, k), in float64.

    >>> squared_distances(torch.tensor([[4.0]]), torch.tensor([[0.0]]), torch.tensor([[4.0]])).item()
    4.0
    """
    factor = torch.linalg.cholesky(covariance.double())
    white = [torch.linalg.solve_triangular(factor, rows.double().T, upper=False).T for rows in (points, means)]
    return torch.cdist(white[0], white[1], compute_mode="donot_use_mm_for_euclid_dist").square()


def shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    """(1 - s) C + s (tr C / d) I; the identity where C is zero, as after single examples."""
    width = len(covariance)
    variance = covariance.trace() / width
    if not variance > 0:
        return torch.eye(width, dtype=covariance.dtype)
    return (1 - shrinkage) * covariance + shrinkage * variance * torch.eye(width, dtype=covariance.dtype)


@final
class Mahalanobis(Router):
    """A Gaussian of the frozen features for each task or class; all share one covariance (distance of arXiv 1807.03888).

    The covariance is the pooled scatter around the own means over all tasks so far, so it is refined by later tasks
    while means stay; sums are kept in float64 and do not depend on the order of tasks. Without shrinkage few examples
    would leave it singular.

    Memory: d x d and a mean of d per task or class.
    Compute: one pass of the frozen model over every example, kept, and one Cholesky of d x d to answer.
    Differs:
    - The paper of the distance detects foreign examples and shrinks nothing.
    """

    name: ClassVar[str] = "mahalanobis"

    def __init__(
        self,
        *,
        shrinkage: Annotated[float, "how far the covariance is drawn to the identity, above 0 to 1"] = 0.05,
        per: Annotated[Literal["task", "class"], "one Gaussian a task, or one a class where those lie apart"] = "task",
    ) -> None:
        if not 0 < shrinkage <= 1:
            raise ConfigError(f"shrinkage is {shrinkage}; give a share above 0 and at most 1")
        self.shrinkage, self.per = shrinkage, per
        self._means = torch.zeros(0, 0, dtype=torch.float64)
        self._modules = torch.zeros(0, dtype=torch.int64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)
        self._count = 0

    def end_task(self, context: Context) -> None:
        labels = torch.from_numpy(context.task.data.labels)
        groups = labels if self.per == "class" else torch.zeros_like(labels)
        means, scatter = grouped_scatter(context.passes.base_features(context.task.data), groups)
        self._means = torch.cat([self._means, means]) if self._count else means
        self._scatter = self._scatter + scatter if self._count else scatter
        self._modules = torch.cat([self._modules, torch.full((len(means),), own_module(context))])
        self._count += len(labels)

    def route(self, context: Context, dataset: Dataset) -> Tensor:
        covariance = shrunk(self._scatter / self._count, self.shrinkage)
        distances = squared_distances(context.passes.base_features(dataset), self._means, covariance)
        return self._modules[distances.argmin(dim=1)]

    def state(self) -> State:
        tensors = {"means": self._means, "scatter": self._scatter, "modules": self._modules}
        return State(tensors, {"count": self._count})

    def load_state(self, state: State, context: Context) -> None:
        self._means, self._scatter = state.tensors["means"], state.tensors["scatter"]
        self._modules, self._count = state.tensors["modules"], int(state.values["count"])
