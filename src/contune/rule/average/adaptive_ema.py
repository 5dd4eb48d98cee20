"""A running mean of what is trained whose step follows drift and gradients (LCIA, arXiv 2410.10868)."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.capability import THROUGH_TASKS, Lifetime, Need
from contune.contract.context import Context
from contune.contract.parts import Phase, Rule
from contune.contract.state import State, on_device
from contune.rule.average.average import Which, averaged_values, grow_from, require_decay


def balance_weight(drift: Tensor, gradient: Tensor, change: Tensor, fallback: float) -> tuple[Tensor, Tensor]:
    """The share alpha of the trained values in the next mean, and whether it is the `fallback`.

    alpha = 2 (1 + |gradient|) / (|drift| |change|) with the sums of absolute entries of one tensor: of trained values less
    their mean, of the gradient, and of the gradient less that of the step before. Where that is not between 0 and 1 (also
    where nothing drifts or changes), the fallback.

    >>> drift, gradient, change = torch.tensor([4.0, -4.0]), torch.tensor([1.0, 0.0]), torch.tensor([2.0])
    >>> balance_weight(drift, gradient, change, 0.01)[0].item()
    0.25
    >>> [found.item() for found in balance_weight(drift / 8, gradient, change, 0.5)]
    [0.5, True]
    """
    alpha = 2 * (1 + gradient.abs().sum()) / (drift.abs().sum() * change.abs().sum())
    outside = ~((alpha > 0) & (alpha < 1))
    return torch.where(outside, torch.full_like(alpha, fallback), alpha), outside


def blended(mean: Tensor, value: Tensor, share: Tensor | float) -> Tensor:
    """(1 - share) mean + share value.

    >>> blended(torch.tensor([0.0]), torch.tensor([8.0]), 0.25).item()
    2.0
    """
    return (1 - share) * mean + share * value


def place_of(shape: Sequence[int]) -> tuple[slice, ...]:
    """Where a tensor of this earlier shape lies in what has grown from it."""
    return grow_from(torch.empty(tuple(shape), device="meta"))


@final
class AdaptiveEma(Rule):
    """theta* <- (1 - alpha) theta* + alpha theta after every step, alpha for each tensor anew; theta* answers (2410.10868).

    alpha is `balance_weight`, the form of the released code, of L1 norms of whole tensors; where it gives no number
    between 0 and 1, and at a task's first step, which has no gradient before it, `fallback`. The paper states it entry
    by entry and without the factor 2. Where drift times change stays below 2, as in small tensors, the fallback is all
    there is: `fallbacks` says for every task how often it was taken, `fallback_share` for the last. Gradients are those
    the optimizer used, after clipping.

    Only what an earlier task has trained is averaged, from where the task finds it. Tensors and rows that a task brings
    along answer as trained, as the released scripts leave the average out where a new set of LoRAs starts; so the first
    task is plain training. The next task trains on from the mean. Factors are averaged, not their products.

    Memory: two copies of the tensors while a task is learned.
    Compute: three norms per tensor and step.
    """

    name: ClassVar[str] = "adaptive-ema"
    phase: ClassVar[Phase] = Phase.REWRITES
    needs: ClassVar[tuple[Need, ...]] = (THROUGH_TASKS | Lifetime.BY_KIND,)
    idle: ClassVar[dict[str, object]] = {"share": 1.0}

    def __init__(
        self,
        *,
        fallback: Annotated[float, "weight of new values where none can be computed, 0 to 1", "released code"] = 0.01,
        share: Annotated[float | None, "fixed weight of new values, 0 to 1; null: by drift and gradient"] = None,
        which: Which = "all",
    ) -> None:
        require_decay("fallback", fallback)
        require_decay("share", 1.0 if share is None else share)
        self.fallback, self.share = fallback, share
        self.which: Which = which
        self._mean: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._known: dict[str, list[int]] = {}
        self._counts: list[list[int]] = []

    @property
    def fallbacks(self) -> list[tuple[int, int]]:
        """For every task how many weights were the fallback, and how many there were."""
        return [(fell, taken) for fell, taken in self._counts]

    @property
    def fallback_share(self) -> float:
        """The part of the last task's weights that were the fallback; 0 where there were none."""
        fell, taken = self._counts[-1] if self._counts else (0, 0)
        return fell / max(taken, 1)

    def begin_task(self, context: Context) -> None:
        values = averaged_values(context, self.which)
        earlier = {name: place_of(self._known[name]) for name in values if name in self._known}
        self._mean = {name: values[name][place] for name, place in earlier.items()}
        self._before = {}
        self._counts.append([0, 0])

    def after_step(self, context: Context) -> None:
        trained, fallen = context.model.trained(), []
        for name, mean in self._mean.items():
            place, gradient = grow_from(mean), trained[name].grad
            value = trained[name].detach()[place]
            weight: Tensor | float = self.fallback if self.share is None else self.share
            if self.share is None and gradient is not None:
                weight, outside = self._weight(name, value - mean, gradient[place])
                fallen.append(outside)
            self._mean[name] = blended(mean, value, weight)
        if self.share is None:
            self._count(fallen)

    def _weight(self, name: str, drift: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The balance weight of this tensor; keeps its gradient for the next step."""
        change = gradient - self._before[name] if name in self._before else torch.zeros_like(gradient)
        self._before[name] = gradient.clone()
        return balance_weight(drift, gradient, change, self.fallback)

    def _count(self, fallen: Sequence[Tensor]) -> None:
        without = len(self._mean) - len(fallen)
        self._counts[-1][0] += without + (int(torch.stack(list(fallen)).sum()) if fallen else 0)
        self._counts[-1][1] += len(self._mean)

    def end_task(self, context: Context) -> None:
        values = averaged_values(context, self.which)
        for name, mean in self._mean.items():
            if name in values:
                values[name][grow_from(mean)] = mean
        context.model.write({name: values[name] for name in self._mean if name in values})
        self._known |= {name: list(value.shape) for name, value in values.items()}
        self._mean, self._before = {}, {}

    def diagnostics(self) -> dict[str, float]:
        return {"fallback share": self.fallback_share} if self._counts and self._counts[-1][1] else {}

    def state(self) -> State:
        nested = State.nested({"mean": State(self._mean), "before": State(self._before)})
        counts = [list(each) for each in self._counts]
        return State(nested.tensors, {**nested.values, "known": dict(self._known), "counts": counts})

    def load_state(self, state: State, context: Context) -> None:
        self._mean = on_device(state.inner("mean").tensors, context.model.backbone.device)
        self._before = on_device(state.inner("before").tensors, context.model.backbone.device)
        self._known = {name: [int(size) for size in shape] for name, shape in state.values["known"].items()}
        self._counts = [[int(fell), int(taken)] for fell, taken in state.values["counts"]]
