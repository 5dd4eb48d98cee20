"""Episodic memories that steps must not harm: GEM (arXiv 1706.08840) and A-GEM (arXiv 1812.00420).

A step d harms a memory with loss gradient g where <d, g> > 0: to first order it raises that loss. The gradients are taken
at the weights before the step, over the trained tensors, adapter and head, as one long vector.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contune.contract.capability import THROUGH_TASKS, Lifetime, Need
from contune.contract.context import Context
from contune.contract.data import Dataset, Rows, Selection
from contune.contract.parts import Rule, Tensors
from contune.contract.randomness import numpy_generator
from contune.contract.state import State
from contune.errors import ConfigError
from contune.rule.replay.buffer import Buffer, Rehearsal, offered
from contune.rule.replay.replay import check_sizes

Vector = NDArray[np.float64]
ROUNDING = 1e-10  # share of a Gram matrix's trace below which a slope or an eigenvalue is rounding


def inner_product(first: Tensors, second: Tensors) -> float:
    """Sum over names and entries of first * second, in float64.

    >>> inner_product({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 4.0])})
    11.0
    """
    return float(sum((second[name].double() * value.double()).sum() for name, value in sorted(first.items())))


def with_added(updates: Tensors, others: Sequence[Tensors], factors: Sequence[float]) -> dict[str, Tensor]:
    """moves + sum of factor * other; names that an other lacks stay as they are.

    >>> with_added({"a": torch.tensor([1.0])}, [{"a": torch.tensor([2.0])}], [0.5])["a"].item()
    2.0
    """
    total = dict(updates)
    for other, factor in zip(others, factors, strict=True):
        if factor:
            total |= {name: total[name] + factor * value for name, value in other.items()}
    return total


def not_uphill(updates: Tensors, reference: Tensors) -> Tensors:
    """moves, less their part along the reference gradient where they climb it (A-GEM, equation 11).

    >>> not_uphill({"a": torch.tensor([1.0, 1.0])}, {"a": torch.tensor([2.0, 0.0])})["a"].tolist()
    [0.0, 1.0]
    """
    climb = inner_product(reference, updates)
    if climb <= 0:
        return updates
    return with_added(updates, [reference], [-climb / inner_product(reference, reference)])


def multipliers(gram: Vector, slopes: Vector, margin: float) -> Vector:
    """The v >= margin (T,) that minimises v^T gram v / 2 + slopes^T v (GEM, equation 11), by active sets.

    Lawson and Hanson's algorithm for least squares of no negative entry, on the Gram matrix (T, T).

    >>> multipliers(np.eye(2), np.array([-2.0, 3.0]), 0.0).tolist(), multipliers(np.eye(1), np.array([3.0]), 0.5).tolist()
    ([2.0, 0.0], [0.5])
    """
    shifted = slopes + margin * gram.sum(axis=1)
    found, free = np.zeros(len(gram)), np.zeros(len(gram), dtype=bool)
    small = ROUNDING * max(float(np.trace(gram)), float(np.abs(shifted).max(initial=0.0)))
    for _ in range(10 * len(gram) + 1):
        descent = np.where(free, -np.inf, -(gram @ found + shifted))
        if free.all() or descent.max() <= small:
            break
        free[int(descent.argmax())] = True
        best = solved(gram, shifted, free)
        while (best[free] <= 0).any():
            blocked = free & (best <= 0)
            share = float((found[blocked] / (found[blocked] - best[blocked]).clip(min=1e-300)).min())
            found = found + share * (best - found)
            free &= found > small / max(float(np.trace(gram)), 1e-300)
            found[~free] = 0.0
            best = solved(gram, shifted, free)
        found = best
    return found + margin


def solved(gram: Vector, slopes: Vector, free: NDArray[np.bool_]) -> Vector:
    """The minimum over the free entries alone, the others being 0; the shortest one where there are several."""
    best = np.zeros(len(gram))
    if free.any():
        best[free] = np.linalg.lstsq(gram[np.ix_(free, free)], -slopes[free], rcond=ROUNDING)[0]
    return best


def harmless(updates: Tensors, memories: Sequence[Tensors], margin: float) -> Tensors:
    """The moves nearest to these that harm none of the memories (GEM, equation 8); as they are where they harm none.

    With a `margin` every memory's gradient is taken off at least that many times.

    >>> harmless({"a": torch.ones(2)}, [{"a": torch.tensor([2.0, 0.0])}], 0.0)["a"].tolist()
    [0.0, 1.0]
    """
    climbs = np.array([inner_product(memory, updates) for memory in memories])
    if not len(climbs) or climbs.max() <= 0:
        return updates
    gram = np.array([[inner_product(first, second) for second in memories] for first in memories])
    return with_added(updates, memories, (-multipliers(gram, -climbs, margin)).tolist())


def loss_gradient(context: Context, dataset: Dataset, rows: Rows) -> dict[str, Tensor]:
    """Gradient of the mean classification loss over these rows, in the deterministic view, for what it reaches."""
    trained = context.model.trained()
    sums: dict[str, Tensor] = {}
    total, size = dataset.prepared.units(rows), context.passes.batch_size
    for start in range(0, len(rows), size):
        batch = context.passes.batch([(dataset, rows[start : start + size])])
        logits = context.model.forward(batch).logits
        loss = context.model.objective.losses(context.model, batch, logits).sum() / total
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for name, gradient in zip(trained, found, strict=True):
            if gradient is not None:
                sums[name] = sums[name] + gradient if name in sums else gradient
    return sums


@final
class AverageGradientMemory(Rule):
    """Takes out of a step what raises the loss of a draw from old examples (A-GEM, arXiv 1812.00420, equation 11).

    g is the gradient over examples drawn anew at each step from a reservoir, in which all examples of finished tasks
    are kept with equal probability. What is projected is the step d: d - max(0, <d, g>) g / <g, g>. For plain SGD that
    is the paper's rule; with momentum, decay or Adam the projected gradient would not bind the step.

    Memory: the examples, and one gradient during a step.
    Compute: one more forward and backward pass per step.
    """

    name: ClassVar[str] = "average-gradient-memory"
    needs: ClassVar[tuple[Need, ...]] = (THROUGH_TASKS | Lifetime.PER_TASK,)

    def __init__(
        self,
        *,
        size: Annotated[int, "most examples kept, of all finished tasks together"] = 500,
        batch_size: Annotated[int, "old examples drawn at each step to measure their gradient"] = 32,
    ) -> None:
        check_sizes(size, batch_size)
        self.size, self.batch_size = size, batch_size
        self._kept = Rehearsal()
        self._step = 0
        self._reference: Tensors = {}

    def begin_task(self, context: Context) -> None:
        self._kept.prepare(context)

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        self._step = step  # told anew at each step, so there is no state to save
        return {}

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        if self._kept.ready is not None:
            rows = drawn_rows(context, (self.name, self._step), len(self._kept.ready), self.batch_size)
            self._reference = loss_gradient(context, self._kept.ready, rows)
        return gradients

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        reference, self._reference = self._reference, {}
        return not_uphill(updates, reference) if reference else updates

    def end_task(self, context: Context) -> None:
        self._kept.offer_reservoir(context, self.size)

    def state(self) -> State:
        return self._kept.state()

    def load_state(self, state: State, context: Context) -> None:
        self._kept.load_state(state, context)


@final
class GradientMemory(Rule):
    """The nearest step that raises the loss of no old task's examples (GEM, arXiv 1706.08840, equations 8 to 11).

    The examples of every finished task are drawn once by the seed. At each step every old task k gives a gradient g_k
    over some of them, drawn anew, or all. Where the step d has <d, g_k> > 0 for some k, it becomes d - sum v_k g_k with
    the smallest change that makes all <d, g_k> <= 0; v_k >= `margin` leans it down the old losses as well; it is
    counted for gradients, as in the paper, and shrinks with the step's length over the gradient's. For plain SGD that
    is the paper's rule; with momentum, decay or Adam the projected gradient would not bind the step. Gradients are
    those at the weights of the step, never older.

    Memory: the examples, growing with the tasks, and one gradient per old task during a step.
    Compute: a forward and backward pass per old task and step, and a quadratic program of as many unknowns as old
    tasks.
    """

    name: ClassVar[str] = "gradient-memory"
    needs: ClassVar[tuple[Need, ...]] = (THROUGH_TASKS | Lifetime.PER_TASK,)

    def __init__(
        self,
        *,
        size: Annotated[int, "examples kept of every task", "paper, section 4"] = 256,
        batch_size: Annotated[int | None, "examples of each memory used at a step; null: all, as the paper"] = 32,
        margin: Annotated[float, "least share of each memory's gradient in a bent step", "paper, section 4"] = 0.5,
    ) -> None:
        check_sizes(size, 1 if batch_size is None else batch_size)
        if margin < 0:
            raise ConfigError(f"margin is {margin}; give at least 0")
        self.size, self.batch_size, self.margin = size, batch_size, margin
        self._buffers: list[Buffer] = []
        self._ready: list[Dataset] = []
        self._step = 0
        self._length = 0.0
        self._memories: list[Tensors] = []

    def begin_task(self, context: Context) -> None:
        self._ready = [buffer.dataset(context.model.backbone) for buffer in self._buffers]

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        self._step = step  # told anew at each step, so there is no state to save
        return {}

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        if self._ready:
            self._length = inner_product(gradients, gradients) ** 0.5
            self._memories = [self._gradient_of(context, task) for task in range(len(self._ready))]
        return gradients

    def _gradient_of(self, context: Context, task: int) -> Tensors:
        dataset = self._ready[task]
        count = len(dataset) if self.batch_size is None else self.batch_size
        return loss_gradient(context, dataset, drawn_rows(context, (self.name, self._step, task), len(dataset), count))

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        memories, self._memories = self._memories, []
        scale = inner_product(updates, updates) ** 0.5 / self._length if self._length else 0.0
        return harmless(updates, memories, self.margin * scale)

    def end_task(self, context: Context) -> None:
        if self.size:
            generator = numpy_generator(context.task.settings.seed, "buffer", context.task.index)
            empty = Buffer.empty(context.model.backbone.modality)
            self._buffers.append(offered(empty, context.task.data, self.size, "reservoir", generator, None))

    def state(self) -> State:
        buffers = {f"task{task}": buffer.state() for task, buffer in enumerate(self._buffers)}
        return State.nested({**buffers, "own": State({}, {"tasks": len(self._buffers)})})

    def load_state(self, state: State, context: Context) -> None:
        tasks = int(state.inner("own").values["tasks"])
        self._buffers = [Buffer.from_state(state.inner(f"task{task}")) for task in range(tasks)]
        self.begin_task(context)


def drawn_rows(context: Context, purpose: tuple[str | int, ...], size: int, count: int) -> Rows:
    """`count` of `size` rows without repetition, by the seed, the task and the purpose alone; all in order where too few."""
    if count >= size:
        return np.arange(size)
    generator = numpy_generator(context.task.settings.seed, context.task.index, *purpose)
    return np.sort(generator.choice(size, size=count, replace=False))
