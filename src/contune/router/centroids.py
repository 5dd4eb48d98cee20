"""K-means centres of each task's frozen features: the module of the nearest centre answers (S-Prompts, 2207.12819)."""

from typing import Annotated, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.contract.parts import Router
from contune.contract.randomness import derived_seed
from contune.contract.state import State
from contune.errors import ConfigError
from contune.router.keys import own_module

STARTS = 10  # of K-means, the best of which is kept: the default of scikit-learn when the official code was written


def cluster_centres(points: Tensor, count: int, seed: int) -> Tensor:
    """At most `count` K-means centres (k, d) of points (n, d), in float64; as many as there are different points.

    >>> cluster_centres(torch.tensor([[0.0], [2.0], [9.0]]), 2, 0).sort(dim=0).values.flatten().tolist()
    [1.0, 9.0]
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn itself needs it

    rows = points.double().numpy()
    clusters = min(count, len(np.unique(rows, axis=0)))
    means = KMeans(n_clusters=clusters, n_init=STARTS, random_state=seed % 2**32)
    with threadpool_limits(limits=1):  # several threads add up in any order, and last bits would differ
        means.fit(rows)
    return torch.from_numpy(means.cluster_centers_)


def nearest_centres(points: Tensor, centres: Tensor, distance: str) -> Tensor:
    """The index (n,) of the nearest centre (k, d) by `l1` or `euclidean` distance.

    >>> centres = torch.tensor([[2.0, 2.0], [0.0, 3.5]])
    >>> [nearest_centres(torch.zeros(1, 2), centres, distance).item() for distance in ("l1", "euclidean")]
    [1, 0]
    """
    power = 1.0 if distance == "l1" else 2.0
    mode = "donot_use_mm_for_euclid_dist"  # the other way rounds by what else is in the batch
    return torch.cdist(points.double(), centres.double(), p=power, compute_mode=mode).argmin(dim=1)


@final
class Centroids(Router):
    """Keeps K-means centres of each task's frozen features, scaled to length 1; the nearest centre's module answers.

    S-Prompts (arXiv 2207.12819). The centres of a task depend on its own examples and the seed alone, and no later task
    changes them. Training images are seen in the deterministic view, as at prediction, where the official code clusters
    augmented ones.

    Memory: count x d per task.
    Compute: one pass of the frozen model over every example, kept, and ten runs of K-means per task.
    """

    name: ClassVar[str] = "centroids"

    def __init__(
        self,
        *,
        count: Annotated[int, "K-means centres of each task, from 1", "official code"] = 5,
        distance: Annotated[Literal["l1", "euclidean"], "how near a feature is to a centre", "official code"] = "l1",
    ) -> None:
        if count < 1:
            raise ConfigError(f"count is {count}; give at least 1 centre per task")
        self.count, self.distance = count, distance
        self._centres = torch.zeros(0, 0, dtype=torch.float64)
        self._modules = torch.zeros(0, dtype=torch.int64)

    def end_task(self, context: Context) -> None:
        features = functional.normalize(context.passes.base_features(context.task.data).double(), dim=1)
        centres = cluster_centres(
            features, self.count, derived_seed(context.task.settings.seed, "centroids", context.task.index)
        )
        self._centres = torch.cat([self._centres, centres]) if len(self._centres) else centres
        self._modules = torch.cat([self._modules, torch.full((len(centres),), own_module(context))])

    def route(self, context: Context, dataset: Dataset) -> Tensor:
        features = functional.normalize(context.passes.base_features(dataset).double(), dim=1)
        return self._modules[nearest_centres(features, self._centres, self.distance)]

    def state(self) -> State:
        return State({"centres": self._centres, "modules": self._modules})

    def load_state(self, state: State, context: Context) -> None:
        self._centres, self._modules = state.tensors["centres"], state.tensors["modules"]
