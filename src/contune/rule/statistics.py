"""Class statistics: one Gaussian of features per class and task it came in, and seeded draws from them.

Kept in place of examples. What was measured is never measured again, so the statistics of old classes are those of the
model as it was at the end of their task (SLCA, arXiv 2303.05118, section 3.3).
"""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.state import State
from contune.errors import ConfigError

Form = Literal["full", "diagonal", "low-rank", "shared"]


@final
@dataclass(frozen=True, eq=False)
class Gaussians:
    """m Gaussians over d features. A class that comes back in a later task has one for each time it came.

    `labels`, `tasks` and `counts` (m,) say whose they are and how many examples they were measured on; `means` (m, d).
    `spreads` is, by form: `full` covariances (m, d, d), `diagonal` variances (m, d), `low-rank` factors (m, rank, d) whose
    F^T F plus `rest` (m,) times the identity is the covariance, or `shared`: one covariance (1, d, d) within all classes.
    Kept in float32. Memory in values per Gaussian: d^2, d, rank d, or nothing beyond the mean.
    """

    form: Form
    labels: Tensor
    tasks: Tensor
    counts: Tensor
    means: Tensor
    spreads: Tensor
    rest: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def state(self) -> State:
        """The Gaussians as tensors and a name."""
        tensors = {"labels": self.labels, "tasks": self.tasks, "counts": self.counts, "means": self.means}
        return State({**tensors, "spreads": self.spreads, "rest": self.rest}, {"form": self.form})

    @staticmethod
    def from_state(state: State) -> "Gaussians":
        """The Gaussians that `state` put away."""
        return Gaussians(form=state.values["form"], **state.tensors)


def covariance(features: Tensor) -> Tensor:
    """Covariance (d, d) of rows (n, d) with n - 1 below the line; zero for a single row.

    >>> covariance(torch.tensor([[0.0, 1.0], [2.0, 1.0]], dtype=torch.float64)).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    centred = features - features.mean(dim=0)
    return centred.T @ centred / max(len(features) - 1, 1)


def low_rank(features: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors F (rank, d) and a variance r, so that F^T F + r I has the covariance's top eigenpairs and its trace.

    r is the mean of the eigenvalues left out, as in probabilistic PCA (Tipping and Bishop 1999, equation 8).

    >>> f, r = low_rank(torch.tensor([[0.0, 1.0], [2.0, 1.0]], dtype=torch.float64), 1)
    >>> round(abs(f[0, 0].item()) ** 2, 6), r.item()
    (2.0, 0.0)
    """
    width = features.shape[1]
    factors = features.new_zeros(rank, width)
    _, singular, directions = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False)
    values = singular.square() / max(len(features) - 1, 1)
    kept = min(rank, len(values))
    rest = values[kept:].sum() / max(width - kept, 1)
    factors[:kept] = (values[:kept] - rest).clamp(min=0).sqrt().unsqueeze(1) * directions[:kept]
    return factors, rest


def measured(features: Tensor, labels: Tensor, tasks: Tensor, form: Form, rank: int = 8) -> Gaussians:
    """The Gaussians of features (n, d) by label and task (n,), both sorted; sums are taken in float64.

    >>> measured(torch.eye(2), torch.tensor([1, 1]), torch.zeros(2, dtype=torch.int64), "diagonal").means.tolist()
    [[0.5, 0.5]]
    """
    if rank < 1:
        raise ConfigError(f"rank is {rank}; give at least 1")
    pairs = torch.unique(torch.stack([labels, tasks], dim=1), dim=0)
    groups = [features[(labels == label) & (tasks == task)].double() for label, task in pairs.tolist()]
    rest = torch.zeros(len(groups), dtype=torch.float64)
    if form == "low-rank":
        both = [low_rank(group, rank) for group in groups]
        spreads, rest = torch.stack([factors for factors, _ in both]), torch.stack([left for _, left in both])
    elif form == "diagonal":
        spreads = torch.stack([covariance(group).diagonal() for group in groups])
    elif form == "full":
        spreads = torch.stack([covariance(group).float() for group in groups])
    else:
        scatter = torch.stack([covariance(group) * (len(group) - 1) for group in groups]).sum(dim=0)
        spreads = (scatter / max(len(features) - len(groups), 1)).unsqueeze(0)
    means = torch.stack([group.mean(dim=0) for group in groups]).float()
    counts = torch.tensor([len(group) for group in groups])
    return Gaussians(form, pairs[:, 0], pairs[:, 1], counts, means, spreads.float(), rest.float())


def joined(old: Gaussians | None, new: Gaussians) -> Gaussians:
    """The old Gaussians and then the new ones; a shared covariance is pooled by degrees of freedom."""
    if old is None:
        return new
    if new.form == "shared":
        first, second = (max(int(g.counts.sum()) - len(g), 0) for g in (old, new))
        total = max(first + second, 1)
        spreads = (old.spreads.double() * first + new.spreads.double() * second).float() / total
    else:
        spreads = torch.cat([old.spreads, new.spreads])
    pairs = ((getattr(old, name), getattr(new, name)) for name in ("labels", "tasks", "counts", "means"))
    labels, tasks, counts, means = (torch.cat(pair) for pair in pairs)
    return Gaussians(new.form, labels, tasks, counts, means, spreads, torch.cat([old.rest, new.rest]))


def sampled(
    gaussians: Gaussians,
    place: int,
    count: int,
    generator: torch.Generator,
    *,
    mean_factor: float = 1.0,
    jitter: float = 1e-4,
) -> Tensor:
    """`count` draws (count, d) in float64 from N(mean_factor * mean, covariance + jitter I) of the Gaussian at `place`."""
    mean = gaussians.means[place].double() * mean_factor
    noise = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    spread = gaussians.spreads[0 if gaussians.form == "shared" else place].double()
    if gaussians.form == "diagonal":
        return mean + noise * (spread + jitter).sqrt()
    if gaussians.form == "low-rank":
        inside = torch.randn(count, len(spread), generator=generator, dtype=torch.float64)
        return mean + inside @ spread + noise * (gaussians.rest[place].double() + jitter).sqrt()
    return mean + noise @ square_root(spread, jitter).T


def square_root(spread: Tensor, jitter: float) -> Tensor:
    """L (d, d) with L L^T = spread + jitter I: Cholesky in float64, or by eigenvalues where rounding left one negative.

    >>> root = square_root(torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64)), 0.0)
    >>> (root @ root.T).tolist()
    [[4.0, 0.0], [0.0, 0.0]]
    """
    shifted = spread + jitter * torch.eye(len(spread), dtype=spread.dtype)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if failed:
        values, vectors = torch.linalg.eigh(shifted)
        factor = vectors * values.clamp(min=0).sqrt()
    root: Tensor = factor
    return root


def task_features(context: Context) -> tuple[Tensor, Tensor]:
    """Features (n, d) of the task's own examples, and the module (n,) of a modular adapter that each came through."""
    dataset, adapter = context.dataset, context.adapter
    if not adapter.modular:
        return context.features(dataset), torch.zeros(len(dataset), dtype=torch.int64)
    routes = adapter.routes(torch.from_numpy(dataset.tasks))
    features = torch.zeros(len(dataset), adapter.feature_size(context.backbone))
    for module in torch.unique(routes).tolist():
        chosen = routes == module
        features[chosen] = context.module_features(dataset, module)[chosen]
    return features, routes


def measured_task(context: Context, form: Form, rank: int) -> Gaussians:
    """The Gaussians of the task just learned, in the model's deterministic view."""
    features, _ = task_features(context)
    dataset = context.dataset
    return measured(features, torch.from_numpy(dataset.labels), torch.from_numpy(dataset.tasks), form, rank)
