"""How changes of one base are combined: DARE on each, then a mean, a sum or TIES, then LiNeS on the whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from contune.errors import ConfigError, did_you_mean
from contune.merge.models.arithmetic import dare, normalised_weights, require_weights, ties, weighted_sum
from contune.merge.models.lines_scaling import scaled
from contune.merge.progress import Watch
from contune.merge.tensors import LazyTensors, Tensors, mapped, require_share, wide

METHODS = ("linear", "task-arithmetic", "ties")


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `merge_checkpoints` and `merge_adapters` do with the changes of the models.

    `linear` is their weighted mean, `task-arithmetic` their weighted sum (arXiv 2212.04089), `ties` trims them to the
    share `keep`, elects signs and takes the weighted mean of those that agree (arXiv 2306.01708). `weights` are all 1
    where none are given. `dare` first drops entries at random and keeps that share, rescaled (arXiv 2311.03099), with
    `seed`. `scale` multiplies the merged change; `lines` is (alpha, beta) of arXiv 2410.17146, which scale it by depth.

    >>> Recipe(weights=(1.0, 3.0)).coefficients(2)
    [0.25, 0.75]
    """

    method: str = "linear"
    weights: tuple[float, ...] | None = None
    scale: float = 1.0
    keep: float = 0.2  # the paper's k = 20 %
    dare: float | None = None
    seed: int = 0
    lines: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"merging method {self.method!r} is unknown; {did_you_mean(self.method, METHODS)}")
        require_share("keep", self.keep)
        if self.dare is not None:
            require_share("dare", self.dare)

    @property
    def is_sum(self) -> bool:
        """Whether each change is only multiplied with its coefficient (and a layer scale), so that factors suffice."""
        return self.method != "ties" and self.dare is None

    @property
    def is_mean(self) -> bool:
        """Whether the result is the weighted mean of the models themselves, so that no base is needed."""
        return self.is_sum and self.method == "linear" and self.scale == 1 and self.lines is None

    def coefficients(self, models: int) -> list[float]:
        """The number that each model's change is multiplied with in a mean or a sum."""
        weights = list(self.weights or [1.0] * models)
        require_weights(range(models), weights)
        return [share * self.scale for share in (normalised_weights(weights) if self.method == "linear" else weights)]

    def described(self) -> dict[str, Any]:
        """What a record of the merge says about it."""
        return {
            "method": self.method,
            "weights": None if self.weights is None else list(self.weights),
            "scale": self.scale,
            "keep": self.keep if self.method == "ties" else None,
            "dare": self.dare,
            "seed": self.seed if self.dare is not None else None,
            "lines": None if self.lines is None else list(self.lines),
        }


def combined(
    changes: Sequence[Tensors], recipe: Recipe, scales: Mapping[str, float] | None = None, watch: Watch = iter
) -> LazyTensors:
    """The merged change of several changes of one base; `scales` are the layer scales where the recipe has LiNeS.

    `watch` sees the names go by where the whole vectors are measured first, as TIES does.

    >>> import torch
    >>> a, b = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
    >>> combined([a, b], Recipe())["w"].item(), combined([a, b], Recipe(method="task-arithmetic"))["w"].item()
    (2.0, 4.0)
    """
    coefficients = recipe.coefficients(len(changes))
    if recipe.dare is not None:
        # Each model has masks of its own, by its place.
        changes = [dare(change, recipe.dare, f"{recipe.seed}/{place}") for place, change in enumerate(changes)]
    if recipe.method == "ties":
        elected = ties(changes, list(recipe.weights or [1.0] * len(changes)), recipe.keep, watch)
        merged = mapped(lambda value: wide(value) * recipe.scale, elected)
    else:
        merged = weighted_sum(changes, coefficients)
    return merged if scales is None else scaled(merged, scales)
