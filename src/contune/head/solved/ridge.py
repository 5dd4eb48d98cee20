"""Ridge regression on features or on random features of them, exact over the whole stream.

RanPAC (arXiv 2307.02251) and ACIL (arXiv 2205.14922) are this head: the recursive update of the latter gives the same
matrix as the sums kept here, by Woodbury's identity.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.data import Rows
from contune.contract.parts import Head, Parameters, Trait
from contune.contract.randomness import numpy_generator, torch_generator
from contune.contract.state import State
from contune.errors import ConfigError
from contune.head.linear import Auxiliary, Kind
from contune.head.solved.class_means import require_learned

Start = Literal["normal", "kaiming-uniform"]
STRENGTHS = tuple(10.0**power for power in range(-8, 9))  # section 4 and the official code: 17 values


def random_features(features: Tensor, projection: Tensor | None) -> Tensor:
    """h(x) = relu(f(x) W) with fixed W (d, M), or the features themselves where there is no projection; float64.

    The product is taken in float64 as well, so that how rows are split into batches shows nowhere.

    >>> random_features(torch.tensor([[1.0]]), torch.tensor([[2.0, -2.0]])).tolist()
    [[2.0, 0.0]]
    """
    if projection is None:
        return features.double()
    return (features.double() @ projection.double()).clamp_(min=0)


def with_float64(device: torch.device) -> torch.device:
    """The device itself, or the processor where it has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def random_projection(width: int, count: int, start: Start, generator: torch.Generator) -> Tensor:
    """W (width, count): standard normal (RanPAC), or uniform in +-1/sqrt(width) as torch starts a layer (ACIL).

    >>> bool((random_projection(4, 99, "kaiming-uniform", torch.Generator()).abs() <= 0.5).all())
    True
    """
    if start == "normal":
        return torch.randn(width, count, generator=generator).double()
    uniform: Tensor = (torch.rand(width, count, generator=generator) * 2 - 1) / width**0.5
    return uniform.double()


def ridge_solution(gram: Tensor, targets: Tensor, strength: float) -> Tensor:
    """W (M, C) that solves (G + strength I) W = Q, by Cholesky in float64.

    >>> round(ridge_solution(torch.eye(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64), 1.0).item(), 12)
    0.5
    """
    shifted = gram.clone()
    shifted.diagonal().add_(strength)  # no second matrix of that size: at 10,000 features one takes 800 MB
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if failed:  # strength too small for the rounding of G: the eigenvalues that are noise are lifted to the noise level
        values, vectors = torch.linalg.eigh(shifted)
        floor = values[-1] * torch.finfo(gram.dtype).eps * len(gram)
        lifted: Tensor = vectors @ ((vectors.T @ targets) / values.clamp(min=floor).unsqueeze(1))
        return lifted
    solution: Tensor = torch.cholesky_solve(targets, factor)
    return solution


@final
@dataclass(frozen=True, eq=False)
class RidgeSums:
    """Sums over rows h (n, M) with targets y (n, C): `gram` H^T H, `cross` H^T Y, and `square`, the sum of all y^2.

    They are all that the squared error of any W depends on: |H W - Y|^2 = tr(W^T G W) - 2 tr(W^T Q) + |Y|^2.
    """

    gram: Tensor
    cross: Tensor
    square: Tensor

    @staticmethod
    def empty(features: int, columns: int, device: torch.device | str = "cpu") -> "RidgeSums":
        """The sums over no rows."""
        gram = torch.zeros(features, features, dtype=torch.float64, device=device)
        return RidgeSums(gram, gram.new_zeros(features, columns), gram.new_zeros(()))

    def add(self, h: Tensor, targets: Tensor) -> None:
        """Take in rows."""
        self.gram.addmm_(h.T, h)
        self.cross.addmm_(h.T, targets)
        self.square.add_(targets.square().sum())

    def error(self, weight: Tensor) -> float:
        """The squared error of W (M, C), summed over all rows and columns.

        >>> rows = RidgeSums.empty(1, 1)
        >>> rows.add(torch.tensor([[1.0], [2.0]]).double(), torch.ones(2, 1).double())
        >>> rows.error(torch.ones(1, 1).double())
        1.0
        """
        return float((weight * (self.gram @ weight)).sum() - 2 * (weight * self.cross).sum() + self.square)


def best_strength(
    h: Tensor, targets: Tensor, held_h: Tensor, held_targets: Tensor, strengths: Sequence[float]
) -> float:
    """The strength with the lowest mean squared error on the held-out rows; one `eigh` serves all strengths.

    Works on the smaller side: with fewer rows n than random features M on H H^T (n, n), by the push-through identity
    (H^T H + s I)^-1 H^T = H^T (H H^T + s I)^-1.
    """
    if len(h) >= h.shape[1]:
        fit, held = (RidgeSums.empty(h.shape[1], targets.shape[1], h.device) for _ in range(2))
        fit.add(h, targets)
        held.add(held_h, held_targets)
        return best_strength_of_sums(fit, held, strengths)
    values, vectors = torch.linalg.eigh(h @ h.T)
    values = values.clamp(min=0)
    left, right = held_h @ h.T @ vectors, vectors.T @ targets
    errors = [(left @ (right / (values + s).unsqueeze(1)) - held_targets).square().mean().item() for s in strengths]
    return float(strengths[int(np.argmin(errors))])


def best_strength_of_sums(fit: RidgeSums, held: RidgeSums, strengths: Sequence[float]) -> float:
    """What `best_strength` finds, from sums over the rows alone: nothing here grows with their number."""
    values, vectors = torch.linalg.eigh(fit.gram)
    values = values.clamp(min=0)
    right = vectors.T @ fit.cross
    errors = [held.error(vectors @ (right / (values + s).unsqueeze(1))) for s in strengths]
    return float(strengths[int(np.argmin(errors))])


def counts_of(answers: Tensor) -> Tensor:
    """How many rows (n, C) say something about each column (C,).

    >>> counts_of(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist()
    [2, 0]
    """
    return (answers != 0).sum(dim=0).cpu()


def by_column(counts: Tensor) -> dict[int, int]:
    """Counts (C,) of the columns that have any.

    >>> by_column(torch.tensor([0, 2]))
    {1: 2}
    """
    return {column: int(count) for column, count in enumerate(counts.tolist()) if count}


@final
@dataclass(frozen=True)
class Search:
    """What one task's search for a strength found: `counts` of its examples by column, `trace` of their H^T H."""

    strength: float
    counts: Mapping[int, int]
    trace: float

    def without(self, counts: Mapping[int, int], trace: float) -> "Search":
        """The same search where examples have been taken out again."""
        left = {column: count - counts.get(column, 0) for column, count in self.counts.items()}
        return Search(self.strength, {column: count for column, count in left.items() if count}, self.trace - trace)

    def could_hold(self, counts: Mapping[int, int]) -> bool:
        """Whether so many examples of each column could be among those of this task."""
        return all(self.counts.get(column, 0) >= count for column, count in counts.items())


def searches_left(searches: Sequence[Search], counts: Mapping[int, int], trace: float) -> list[Search]:
    """The searches of tasks that still have examples once these are out; a task is known by its counts and its trace.

    >>> searches_left([Search(10.0, {0: 2}, 5.0), Search(1.0, {1: 2}, 7.0)], {1: 2}, 7.0)
    [Search(strength=10.0, counts={0: 2}, trace=5.0)]
    """
    same = [n for n, each in enumerate(searches) if each.counts == counts]
    whole = [n for n in same if math.isclose(searches[n].trace, trace, rel_tol=1e-5)]
    near = [n for n, each in enumerate(searches) if each.could_hold(counts)]
    chosen = whole or near
    if not chosen:
        return list(searches)
    left = searches[chosen[-1]].without(counts, trace)
    return [*searches[: chosen[-1]], *([left] if left.counts else []), *searches[chosen[-1] + 1 :]]


@final
class Ridge(Head):
    """Scores h(x) W with W = (G + strength I)^-1 Q, where G and Q are sums over every example seen.

    Without a strength one of 17 powers of ten is chosen on a seeded fifth of the current task's features, as RanPAC
    does; a number makes the result independent of the order of tasks, and is what ACIL does. A task of one example
    keeps the strength before it.

    Features come in blocks, so memory does not grow with the examples of a task. The search needs no second pass: of up
    to M examples (M random features) the features are kept for it; of more, sums of the fitted and of the held-out part
    are taken apart, which are two more matrices M x M. Differs from a search over rows in rounding alone.

    Sums and solutions are where the model is, so on a GPU's memory too, unless it has no float64.

    `forget` subtracts examples: exact as far as the same examples give the same features, so to the last bit of float32
    features where they come in other batches. With a whole task goes the strength that it chose: what is left is solved
    with that of the last task that is left. Where a part of a task is forgotten, the strength that it chose stays. A class
    without examples is never answered.

    Memory: M x M + M x classes in float64 for M random features, or the features' own width.
    Compute: one forward pass over every example, one Cholesky a task, and one eigenvalue problem for the search.
    """

    name: ClassVar[str] = "ridge"
    needs_traits: ClassVar[frozenset[Trait]] = frozenset({Trait.EXAMPLE_ROWS})
    closed_form: ClassVar[bool] = True
    takes_modules: ClassVar[Literal["one", "fixed", "growing"]] = "fixed"

    def __init__(
        self,
        *,
        random_features: Annotated[int, "random ReLU features to regress on; 0: the features themselves"] = 0,
        strength: Annotated[float | None, "ridge, from 0; null: searched on a fifth of each task", "RanPAC"] = None,
        projection: Annotated[Start, "how random features are drawn; kaiming-uniform is ACIL's", "RanPAC"] = "normal",
        auxiliary: Annotated[Kind, "head that trains a first-task adapter, then dropped"] = "linear",
    ) -> None:
        if random_features < 0 or (strength is not None and strength < 0):
            raise ConfigError(f"random_features is {random_features} and strength {strength}; neither may be below 0")
        self.random_features, self.strength, self.projection = random_features, strength, projection
        self._lent = Auxiliary(auxiliary)
        self._gram = torch.zeros(0, 0, dtype=torch.float64)
        self._targets = torch.zeros(0, 0, dtype=torch.float64)
        self._weight = torch.zeros(0, 0, dtype=torch.float64)
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._projection: Tensor | None = None
        self._used_strength = 0.0
        self._searches: list[Search] = []

    def begin_task(self, context: Context) -> None:
        self._lent.begin_task(context)
        if not len(self._gram):
            width = context.model.feature_size()
            self._project(context)
            size, device = self.random_features or width, with_float64(context.model.backbone.device)
            self._gram = torch.zeros(size, size, dtype=torch.float64, device=device)
            self._targets = self._gram.new_zeros(size, 0)
        missing = context.task.seen - self._targets.shape[1]
        self._targets = torch.cat([self._targets, self._targets.new_zeros(len(self._gram), missing)], dim=1)
        self._counts = torch.cat([self._counts, self._counts.new_zeros(missing)])

    def _project(self, context: Context) -> None:
        if self.random_features:
            generator = torch_generator(context.task.settings.seed, "random features")
            drawn = random_projection(context.model.feature_size(), self.random_features, self.projection, generator)
            self._projection = drawn.to(with_float64(context.model.backbone.device))

    def trained(self) -> Parameters:
        return self._lent.trained()

    def training_logits(self, features: Tensor) -> Tensor:
        return self._lent.logits(features)

    def fit(self, context: Context) -> None:
        if self.strength is None:
            counts, trace = self._counts.clone(), float(self._gram.trace())
            self._used_strength = self._add_and_search(context)
            added = by_column(self._counts - counts)
            self._searches.append(Search(self._used_strength, added, float(self._gram.trace()) - trace))
        else:
            self._used_strength = self.strength
            for features, one_hot, _ in self._blocks(context):
                self._add(features, one_hot, 1.0)
        self._weight = ridge_solution(self._gram, self._targets, self._used_strength)

    def forget(self, context: Context) -> None:
        rows = np.arange(len(context.task.data))
        counts, trace = counts_of(self._answers(context, rows)), float(self._gram.trace())
        require_learned(self._counts, counts)
        for features, one_hot, _ in self._blocks(context):
            self._add(features, one_hot, -1.0)
        self._searches = searches_left(self._searches, by_column(counts), trace - float(self._gram.trace()))
        if self._searches:
            self._used_strength = self._searches[-1].strength
        self._targets[:, self._counts == 0] = 0.0
        self._weight = ridge_solution(self._gram, self._targets, self._used_strength)

    def _blocks(self, context: Context) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features, targets and places of the task's rows, block by block."""
        for rows, features in context.passes.feature_blocks(context.task.data):
            here = features.to(self._gram.device)
            yield here, self._answers(context, rows), torch.from_numpy(rows)

    def _answers(self, context: Context, rows: Rows) -> Tensor:
        """What is right for these rows, as numbers (rows, C)."""
        found = context.model.objective.target_matrix(context.model, context.task.data, rows)
        return found.to(self._gram.device)

    def _add(self, features: Tensor, one_hot: Tensor, sign: float) -> None:
        h = random_features(features, self._projection)
        self._gram.addmm_(h.T, h, alpha=sign)
        self._targets.addmm_(h.T, one_hot, alpha=sign)
        self._counts += int(sign) * counts_of(one_hot)

    def _add_and_search(self, context: Context) -> float:
        """Add the task to the sums and choose the strength on its held-out part."""
        count = len(context.task.data)
        order = numpy_generator(context.task.settings.seed, "strength", context.task.index).permutation(count)
        cut = max(1, int(0.8 * len(order)))
        if cut < len(order) and cut >= len(self._gram):
            return self._add_and_search_sums(context, torch.from_numpy(order[cut:]))
        seen = torch.zeros(len(order), context.model.feature_size(), device=self._gram.device)
        for features, one_hot, rows in self._blocks(context):
            self._add(features, one_hot, 1.0)
            seen[rows] = features
        if cut >= len(order):
            return self._used_strength or 1.0
        h, held_h = (random_features(seen[torch.from_numpy(r)], self._projection) for r in (order[:cut], order[cut:]))
        return best_strength(
            h, self._answers(context, order[:cut]), held_h, self._answers(context, order[cut:]), STRENGTHS
        )

    def _add_and_search_sums(self, context: Context, held_out: Tensor) -> float:
        """The same for more examples than random features: sums for each part, so that one pass is enough."""
        columns = torch.tensor(sorted(context.task.classes))
        is_held = torch.zeros(len(context.task.data), dtype=torch.bool)
        is_held[held_out] = True
        fit, held = (RidgeSums.empty(len(self._gram), len(columns), self._gram.device) for _ in range(2))
        for features, one_hot, rows in self._blocks(context):
            for part, chosen in ((fit, ~is_held[rows]), (held, is_held[rows])):
                part.add(random_features(features[chosen], self._projection), one_hot[chosen][:, columns])
            self._counts += counts_of(one_hot)
        for part in (fit, held):
            self._gram += part.gram
            self._targets[:, columns] += part.cross
        return best_strength_of_sums(fit, held, STRENGTHS)

    def end_task(self, context: Context) -> None:
        del context
        self._lent.drop()

    def logits(self, features: Tensor) -> Tensor:
        scores = random_features(features.to(self._weight.device), self._projection) @ self._weight
        return scores.masked_fill((self._counts == 0).to(scores.device), float("-inf")).float()

    def state(self) -> State:
        tensors = {"gram": self._gram, "targets": self._targets, "weight": self._weight, "counts": self._counts}
        searches = [[each.strength, {str(c): n for c, n in each.counts.items()}, each.trace] for each in self._searches]
        return State({**tensors, **self._lent.tensors()}, {"strength": self._used_strength, "searches": searches})

    def load_state(self, state: State, context: Context) -> None:
        device = with_float64(context.model.backbone.device)
        self._gram, self._targets, self._weight = (state.tensors[n].to(device) for n in ("gram", "targets", "weight"))
        self._counts = state.tensors["counts"]
        self._used_strength = float(state.values["strength"])
        kept = state.values.get("searches", [])
        self._searches = [Search(s, {int(c): int(n) for c, n in counts.items()}, t) for s, counts, t in kept]
        self._project(context)
        self._lent.load(state, context)
