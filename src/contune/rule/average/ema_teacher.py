"""Two memories: the trained tensors learn fast, a slow running mean of them answers (I-LoRA, arXiv 2402.18865)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from contune.contract.context import Context
from contune.contract.data import Batch, Dataset, Outputs, Selection
from contune.contract.parts import Phase, Rule
from contune.contract.state import State, on_device
from contune.errors import ConfigError
from contune.numerics.averages import moved_average
from contune.rule.average.average import (
    averaged_values,
    grow_from,
    present,
    require_decay,
)
from contune.rule.replay.buffer import Rehearsal
from contune.rule.replay.replay import check_sizes, draw

REHEARSAL = "ema-teacher"
DRAWS = "slow-copy"  # no part's name: renaming the part must not draw other examples


def warm_decay(step: int, decay: float) -> float:
    """min(1 - 1 / (step + 1), decay), steps from 0: a plain mean of all steps until that is slower than `decay`.

    >>> [warm_decay(step, 0.6) for step in (0, 1, 9)]
    [0.0, 0.5, 0.6]
    """
    return min(1 - 1 / (step + 1), decay)


def token_distances(fast: Tensor, slow: Tensor, mask: Tensor | None, *, rising: bool) -> Tensor:
    """Mean squared difference (B,) of two layers' states (B, L, d), over the tokens of each example and the width.

    With `rising` only where the fast state is below the slow one, as the released code has it.

    >>> fast, slow = torch.tensor([[[1.0, 5.0]]]), torch.tensor([[[3.0, 4.0]]])
    >>> [token_distances(fast, slow, None, rising=rising).item() for rising in (False, True)]
    [2.5, 2.0]
    """
    difference = slow - fast
    if rising:
        difference = difference.clamp(min=0)
    squares = difference.square().mean(dim=2)
    if mask is None:
        return squares.mean(dim=1)
    tokens = squares[:, -mask.shape[1] :]  # prompts come before the tokens
    return (tokens * mask).sum(dim=1) / mask.sum(dim=1)


def rows_of(batch: Batch, dataset: Dataset) -> Batch | None:
    """The examples of a batch that come from this data set, or None where it has none; for one more forward pass."""
    start = 0
    for part, rows in batch.parts:
        if part is dataset and len(rows):
            places = torch.arange(start, start + len(rows), device=batch.labels.device)
            queries = None if batch.queries is None else batch.queries[places]
            routes = None if batch.routes is None else batch.routes[places]
            resume = None if batch.resume is None else (batch.resume[0], batch.resume[1][places])
            return replace(batch, inputs=batch.inputs.take(places), queries=queries, routes=routes, resume=resume)
        start += len(rows)
    return None


@contextmanager
def states_of(layers: list[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """What every layer gives out (B, L, d) in the forward pass inside the block, by layer."""
    found: dict[int, Tensor] = {}

    def note(index: int, module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        found[index] = (output[0] if isinstance(output, tuple) else output).float()

    handles = [layer.register_forward_hook(partial(note, index)) for index, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@final
class EmaTeacher(Rule):
    """Answers with a slow running mean of what is trained, which also holds the states of old examples (arXiv 2402.18865).

    After every step n of the whole stream slow <- a slow + (1 - a) fast with a = min(1 - 1/(n + 1), `decay`), of
    adapter, head and router alike. From the second task on the rehearsed examples join the task's in one mean, and
    `weight` times the mean squared distance of the fast model's states to the slow one's, over layers, tokens and width
    of the rehearsed examples, is added. `target` `slow` is the paper's distance; `larger` is that of the released code,
    which counts entries only where the fast state is below. At the end of a task the slow values take the trained
    tensors' place, and the fast ones return when the next begins. What is new in a task starts alike in both.

    The slow values are never trained. Factors are averaged, not their products. Other rules see the
    fast values when a task begins. Examples enter the reservoir at the end of their task, so none rehearses itself.

    Memory: two copies of what is trained, and the examples.
    Compute: two more forward passes, one of them with gradients, on the rehearsed examples.
    """

    name: ClassVar[str] = "ema-teacher"
    phase: ClassVar[Phase] = Phase.REWRITES
    idle: ClassVar[Mapping[str, object]] = {"decay": 0.0, "size": 0}

    def __init__(
        self,
        *,
        decay: Annotated[float, "share of slow values that a step keeps, 0 to 1; code: 0.25"] = 0.99,
        weight: Annotated[float, "weight of the distance between slow and fast states, from 0", "released code"] = 1.0,
        target: Annotated[Literal["slow", "larger"], "distance on both sides, or above", "paper"] = "slow",
        size: Annotated[int, "most examples kept to rehearse, of all finished tasks", "released code"] = 500,
        batch_size: Annotated[int | None, "rehearsed examples in a step; null: as many as new ones"] = None,
    ) -> None:
        require_decay("decay", decay)
        check_sizes(size, 1 if batch_size is None else batch_size)
        if weight < 0:
            raise ConfigError(f"weight is {weight}; give at least 0")
        self.decay, self.weight, self.size, self.batch_size = decay, weight, size, batch_size
        self.target: Literal["slow", "larger"] = target
        self._slow: dict[str, Tensor] = {}
        self._fast: dict[str, Tensor] = {}
        self._steps = 0
        self._kept = Rehearsal()
        self._drawn = 0

    def begin_task(self, context: Context) -> None:
        values = averaged_values(context, "all")
        self._slow = {name: value.clone() for name, value in values.items()}
        for name, fast in present(self._fast, context).items():
            values[name][grow_from(fast)] = fast
        context.model.write(values)
        self._fast = {}
        self._kept.prepare(context)

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        if self._kept.ready is None:
            return {}
        count = self.batch_size or context.task.settings.batch_size
        chosen = draw(self._kept.ready, count, context, (DRAWS, epoch, step), None)
        self._drawn = len(chosen.rows)
        return {REHEARSAL: chosen}

    def loss(self, context: Context, batch: Batch, outputs: Outputs) -> Tensor | None:
        del outputs
        if not self.weight or self._kept.ready is None or batch.features is not None:
            return None
        rows = rows_of(batch, self._kept.ready)
        if rows is None:
            return None
        # Layers below the lowest trained one are the same in both; where their states are kept they are not run.
        run = context.model.backbone.layers[rows.resume[0] if rows.resume else 0 :]
        with states_of(run) as fast:
            context.model.encode(rows)
        with torch.no_grad(), context.model.swapped(self._slow), states_of(run) as slow:
            context.model.encode(rows)
        rising = self.target == "larger"
        # A decoder's layers see the answers.
        mask = rows.inputs.mask if rows.inputs.answers is None else rows.inputs.targets
        layers = [token_distances(fast[at], slow[at], mask, rising=rising) for at in sorted(fast)]
        total = torch.stack(layers).sum() / context.model.backbone.depth
        return self.weight * total / self._drawn

    def after_step(self, context: Context) -> None:
        self._slow = moved_average(self._slow, context.model.trained(), warm_decay(self._steps, self.decay))
        self._steps += 1

    def end_task(self, context: Context) -> None:
        self._fast = averaged_values(context, "all")
        context.model.write(present(self._slow, context))
        self._slow = {}
        self._kept.offer_reservoir(context, self.size)

    def state(self) -> State:
        inner = {"slow": State(self._slow), "fast": State(self._fast), "buffer": self._kept.state()}
        return State.nested({**inner, "own": State({}, {"steps": self._steps})})

    def load_state(self, state: State, context: Context) -> None:
        self._slow = on_device(state.inner("slow").tensors, context.model.backbone.device)
        self._fast = on_device(state.inner("fast").tensors, context.model.backbone.device)
        self._steps = int(state.inner("own").values["steps"])
        self._kept.load_state(state.inner("buffer"), context)
