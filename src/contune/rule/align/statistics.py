"""Class statistics: one Gaussian of features per class and task it came in, and seeded draws from them.

Kept in place of examples. What was measured is never measured again, so the statistics of old classes are those of the
model as it was at the end of their task (SLCA, arXiv 2303.05118, section 3.3).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.data import Rows
from contune.contract.state import State
from contune.errors import ConfigError

Form = Literal["full", "diagonal", "low-rank", "shared"]
MOST_ROWS = 2048  # rows of one Gaussian that are in memory together


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


def low_rank_factors(features: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors F (rank, d) and a variance r, so that F^T F + r I has the covariance's top eigenpairs and its trace.

    r is the mean of the eigenvalues left out, as in probabilistic PCA (Tipping and Bishop 1999, equation 8).

    >>> f, r = low_rank_factors(torch.tensor([[0.0, 1.0], [2.0, 1.0]], dtype=torch.float64), 1)
    >>> round(abs(f[0, 0].item()) ** 2, 6), r.item()
    (2.0, 0.0)
    """
    _, singular, directions = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False)
    return top(singular.square() / max(len(features) - 1, 1), directions, rank)


def top(values: Tensor, directions: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors and left-over variance of `low_rank_factors` from falling eigenvalues (k,) and their directions (k, d)."""
    width = directions.shape[1]
    factors = directions.new_zeros(rank, width)
    kept = min(rank, len(values))
    rest = values[kept:].sum() / max(width - kept, 1)
    factors[:kept] = (values[:kept] - rest).clamp(min=0).sqrt().unsqueeze(1) * directions[:kept]
    return factors, rest


@final
@dataclass(frozen=True, eq=False)
class Scatter:
    """What `count` rows say together: their mean (d,) and the sum (d, d) of outer products around it, in float64."""

    count: int
    mean: Tensor
    sums: Tensor

    @staticmethod
    def of(rows: Tensor) -> "Scatter":
        """Of rows (n, d)."""
        mean = rows.mean(dim=0)
        centred = rows - mean
        return Scatter(len(rows), mean, centred.T @ centred)

    def joined_gaussians(self, other: "Scatter") -> "Scatter":
        """Of the rows of both, without the cancellation of plain sums of squares (Chan, Golub and LeVeque 1983).

        >>> one, two = (Scatter.of(torch.tensor([[x]], dtype=torch.float64)) for x in (0.0, 2.0))
        >>> one.joined_gaussians(two).mean.item(), one.joined_gaussians(two).sums.item()
        (1.0, 2.0)
        """
        count, away = self.count + other.count, other.mean - self.mean
        between = torch.outer(away, away) * (self.count * other.count / count)
        return Scatter(count, self.mean + away * (other.count / count), self.sums + other.sums + between)

    def covariance(self) -> Tensor:
        """With n - 1 below the line; zero for a single row."""
        return self.sums / max(self.count - 1, 1)


def covariance(features: Tensor) -> Tensor:
    """Covariance (d, d) of rows (n, d) with n - 1 below the line; zero for a single row.

    >>> covariance(torch.tensor([[0.0, 1.0], [2.0, 1.0]], dtype=torch.float64)).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    return Scatter.of(features).covariance()


@final
class ClassGaussian:
    """The rows of one Gaussian as they come: kept until they are `MOST_ROWS`, then folded into their scatter."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._rows: list[Tensor] = []
        self._before: Scatter | None = None

    def add(self, rows: Tensor) -> bool:
        """Take in rows (n, d); whether these were the last."""
        self._rows.append(rows)
        self._left -= len(rows)
        if self._left and sum(len(each) for each in self._rows) >= MOST_ROWS:
            self._before, self._rows = self.scatter(), []
        return not self._left

    def scatter(self) -> Scatter:
        """What all rows so far say."""
        found = Scatter.of(torch.cat(self._rows).double())
        return found if self._before is None else self._before.joined_gaussians(found)

    def low_rank_factors(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, factors and the variance left over."""
        if self._before is None:
            rows = torch.cat(self._rows).double()
            return rows.mean(dim=0), *low_rank_factors(rows, rank)
        found = self.scatter()
        values, vectors = torch.linalg.eigh(found.covariance())
        return found.mean, *top(values.flip(0).clamp(min=0), vectors.flip(1).T, rank)


def measured(features: Tensor, labels: Tensor, tasks: Tensor, form: Form, rank: int = 8) -> Gaussians:
    """The Gaussians of features (n, d) by label and task (n,), both sorted; sums are taken in float64.

    >>> measured(torch.eye(2), torch.tensor([1, 1]), torch.zeros(2, dtype=torch.int64), "diagonal").means.tolist()
    [[0.5, 0.5]]
    """
    return measured_blocks([(np.arange(len(features)), features)], labels, tasks, form, rank)


def measured_blocks(
    blocks: Iterable[tuple[Rows, Tensor]], labels: Tensor, tasks: Tensor, form: Form, rank: int = 8
) -> Gaussians:
    """What `measured` says of all features together, with one block of them at a time; every row comes once."""
    if rank < 1:
        raise ConfigError(f"rank is {rank}; give at least 1")
    most = int(tasks.max()) + 1 if len(tasks) else 1
    codes, place = torch.unique(labels * most + tasks, return_inverse=True)
    counts = torch.bincount(place, minlength=len(codes))
    groups = [ClassGaussian(count) for count in counts.tolist()]
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    pooled: Tensor | None = None
    for rows, features in blocks:
        places, order = place[torch.from_numpy(rows)].sort(stable=True)
        present, sizes = torch.unique_consecutive(places, return_counts=True)
        for number, chosen in zip(present.tolist(), torch.split(order, sizes.tolist()), strict=True):
            if not groups[number].add(features[chosen]):
                continue
            mean, spread, rest = spread_of(groups[number], form, rank)
            if form == "shared":
                pooled = spread if pooled is None else pooled + spread
                spread = spread.new_zeros(0)
            found[number] = (mean.float(), spread.float(), rest.float())
            groups[number] = ClassGaussian(0)
    means, spreads, rests = (torch.stack([found[i][column] for i in range(len(codes))]) for column in range(3))
    if pooled is not None:
        spreads = (pooled / max(len(labels) - len(codes), 1)).unsqueeze(0).float()
    return Gaussians(form, codes // most, codes % most, counts, means, spreads, rests)


def spread_of(group: ClassGaussian, form: Form, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, spread and rest of a group whose rows are complete; for `shared` the spread is its sum of outer products."""
    if form == "low-rank":
        return group.low_rank_factors(rank)
    whole = group.scatter()
    rest = whole.mean.new_zeros(())
    if form == "shared":
        return whole.mean, whole.covariance() * (whole.count - 1), rest
    return whole.mean, whole.covariance().diagonal().clone() if form == "diagonal" else whole.covariance(), rest


def joined_gaussians(old: Gaussians | None, new: Gaussians) -> Gaussians:
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


@final
class Sampler:
    """Seeded draws from Gaussians. The square roots of full covariances are taken here, once, and held beside them."""

    def __init__(self, gaussians: Gaussians, *, jitter: float = 1e-4) -> None:
        self.gaussians, self._jitter = gaussians, jitter
        self._roots: list[Tensor] = []
        if gaussians.form in ("full", "shared"):
            self._roots = [square_root(spread.double(), jitter).float().T for spread in gaussians.spreads]

    def draw(self, place: int, count: int, generator: torch.Generator, *, mean_factor: float = 1.0) -> Tensor:
        """Rows (count, d) from N(mean_factor * mean, covariance + jitter I) of the Gaussian at `place`."""
        of = self.gaussians
        mean = of.means[place] * mean_factor
        noise = torch.randn(count, len(mean), generator=generator)
        if self._roots:
            return torch.addmm(mean, noise, self._roots[0 if of.form == "shared" else place])
        spread = of.spreads[place]
        if of.form == "diagonal":
            return mean + noise * (spread + self._jitter).sqrt()
        inside = torch.randn(count, len(spread), generator=generator)
        return mean + inside @ spread + noise * (of.rest[place] + self._jitter).sqrt()


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


def task_blocks(context: Context) -> Iterator[tuple[Rows, Tensor]]:
    """Features of the task's own examples in blocks with their places, each through the module that learned it."""
    dataset, modules = context.task.data, context.model.modules
    if modules is None:
        yield from context.passes.feature_blocks(dataset)
        return
    routes = modules.routes(torch.from_numpy(dataset.tasks)).numpy()
    for module in np.unique(routes).tolist():
        for rows, features in context.passes.module_blocks(dataset, module):
            chosen = np.flatnonzero(routes[rows] == module)
            yield rows[chosen], features[torch.from_numpy(chosen)]


def measured_task(context: Context, form: Form, rank: int) -> Gaussians:
    """The Gaussians of the task just learned, in the model's deterministic view."""
    labels, tasks = torch.from_numpy(context.task.data.labels), torch.from_numpy(context.task.data.tasks)
    return measured_blocks(task_blocks(context), labels, tasks, form, rank)
