"""Ridge regression on features or on random features of them, exact over the whole stream.

RanPAC (arXiv 2307.02251) and ACIL (arXiv 2205.14922) are this head: the recursive update of the latter gives the same
matrix as the sums kept here, by Woodbury's identity.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.parts import Head, Parameters
from contune.contract.randomness import numpy_generator, torch_generator
from contune.contract.state import State
from contune.errors import ConfigError
from contune.head.class_means import require_learned
from contune.head.linear import Linear

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


def best_strength(
    h: Tensor, targets: Tensor, held_h: Tensor, held_targets: Tensor, strengths: Sequence[float]
) -> float:
    """The strength with the lowest mean squared error on the held-out rows; one `eigh` serves all strengths.

    Works on the smaller side: with fewer rows n than random features M on H H^T (n, n), by the push-through identity
    (H^T H + s I)^-1 H^T = H^T (H H^T + s I)^-1.
    """
    dual = len(h) < h.shape[1]
    values, vectors = torch.linalg.eigh(h @ h.T if dual else h.T @ h)
    values = values.clamp(min=0)
    left = held_h @ h.T @ vectors if dual else held_h @ vectors
    right = vectors.T @ targets if dual else vectors.T @ (h.T @ targets)
    errors = [(left @ (right / (values + s).unsqueeze(1)) - held_targets).square().mean().item() for s in strengths]
    return float(strengths[int(np.argmin(errors))])


@final
class Ridge(Head):
    """Scores h(x) W with W = (G + strength I)^-1 Q, where G and Q are sums over every example seen.

    `random_features`: 0 for the features themselves; `projection` says how their weights are drawn. `strength`: None
    chooses among 17 powers of ten on a seeded fifth of the current task's features, as RanPAC does; a number makes the
    result independent of the order of tasks, and is what ACIL does. A task of one example keeps the strength before it.

    `forget` subtracts examples: exact as far as the same examples give the same features, so to the last bit of float32
    features where they come in other batches. A class without examples is never answered.
    """

    name: ClassVar[str] = "ridge"
    closed_form: ClassVar[bool] = True
    takes_modules: ClassVar[Literal["one", "fixed", "growing"]] = "fixed"

    def __init__(
        self, *, random_features: int = 0, strength: float | None = None, projection: Start = "normal"
    ) -> None:
        if random_features < 0 or (strength is not None and strength < 0):
            raise ConfigError(f"random_features is {random_features} and strength {strength}; neither may be below 0")
        self.random_features, self.strength, self.projection = random_features, strength, projection
        self._lent = Linear()
        self._gram = torch.zeros(0, 0, dtype=torch.float64)
        self._targets = torch.zeros(0, 0, dtype=torch.float64)
        self._weight = torch.zeros(0, 0, dtype=torch.float64)
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._projection: Tensor | None = None
        self._used_strength = 0.0

    def begin_task(self, context: Context) -> None:
        if context.adapting and context.adapter.trained():
            self._lent.begin_task(context)
        if not len(self._gram):
            width = context.feature_size()
            self._project(width, context.settings.seed)
            size = self.random_features or width
            self._gram = torch.zeros(size, size, dtype=torch.float64)
            self._targets = torch.zeros(size, 0, dtype=torch.float64)
        missing = context.task.seen - self._targets.shape[1]
        self._targets = torch.cat([self._targets, self._targets.new_zeros(len(self._gram), missing)], dim=1)
        self._counts = torch.cat([self._counts, self._counts.new_zeros(missing)])

    def _project(self, width: int, seed: int) -> None:
        if self.random_features:
            generator = torch_generator(seed, "random features")
            self._projection = random_projection(width, self.random_features, self.projection, generator)

    def trained(self) -> Parameters:
        return self._lent.trained()

    def training_logits(self, features: Tensor) -> Tensor:
        return self._lent.logits(features)

    def fit(self, context: Context) -> None:
        features, one_hot = context.features(context.dataset), self._one_hot(context)
        self._add(features, one_hot, 1.0)
        given = self.strength
        self._used_strength = self._search(features, one_hot, context) if given is None else given
        self._weight = ridge_solution(self._gram, self._targets, self._used_strength)

    def forget(self, context: Context) -> None:
        one_hot = self._one_hot(context)
        require_learned(self._counts, one_hot.sum(dim=0).long())
        self._add(context.features(context.dataset), one_hot, -1.0)
        self._targets[:, self._counts == 0] = 0.0
        self._weight = ridge_solution(self._gram, self._targets, self._used_strength)

    def _one_hot(self, context: Context) -> Tensor:
        labels = torch.from_numpy(context.dataset.labels)
        return torch.nn.functional.one_hot(labels, self._targets.shape[1]).double()

    def _add(self, features: Tensor, one_hot: Tensor, sign: float) -> None:
        for rows in torch.split(torch.arange(len(features)), 2048):
            h = random_features(features[rows], self._projection)
            self._gram.addmm_(h.T, h, alpha=sign)
            self._targets.addmm_(h.T, one_hot[rows], alpha=sign)
        self._counts += (sign * one_hot.sum(dim=0)).long()

    def _search(self, features: Tensor, one_hot: Tensor, context: Context) -> float:
        order = numpy_generator(context.settings.seed, "strength", context.task.index).permutation(len(features))
        cut = max(1, int(0.8 * len(order)))
        fit, held = torch.from_numpy(order[:cut]), torch.from_numpy(order[cut:])
        if not len(held):
            return self._used_strength or 1.0
        h, held_h = random_features(features[fit], self._projection), random_features(features[held], self._projection)
        return best_strength(h, one_hot[fit], held_h, one_hot[held], STRENGTHS)

    def end_task(self, context: Context) -> None:
        del context
        self._lent = Linear()

    def logits(self, features: Tensor) -> Tensor:
        scores = random_features(features.cpu(), self._projection) @ self._weight
        return scores.masked_fill(self._counts == 0, float("-inf")).float()

    def state(self) -> State:
        tensors = {"gram": self._gram, "targets": self._targets, "weight": self._weight, "counts": self._counts}
        lent = State.nested({"lent": self._lent.state()}).tensors
        return State({**tensors, **lent}, {"strength": self._used_strength})

    def load_state(self, state: State, context: Context) -> None:
        self._gram, self._targets = state.tensors["gram"], state.tensors["targets"]
        self._weight, self._counts = state.tensors["weight"], state.tensors["counts"]
        self._used_strength = float(state.values["strength"])
        self._project(context.feature_size(), context.settings.seed)
        lent = state.inner("lent")
        if lent.tensors:
            self._lent.load_state(lent, context)
