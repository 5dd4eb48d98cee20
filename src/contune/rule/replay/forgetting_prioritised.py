"""Short phases of fine-tuning on a buffer, of what forgets most and nothing else (FPF, arXiv 2304.04158)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.backbone.layers import is_norm
from contune.contract.context import Context
from contune.contract.data import Dataset, Rows, Selection
from contune.contract.parts import Rule, Trait
from contune.contract.randomness import numpy_generator
from contune.contract.state import State
from contune.errors import ConfigError
from contune.rule.replay.buffer import Buffer, offered
from contune.rule.replay.der import logit_distance
from contune.rule.replay.replay import check_sizes

Parts = Literal["head-and-norms", "head", "all"]


def phase_steps(steps: int, phases: int) -> list[int]:
    """After how many of `steps` steps a phase comes: evenly spaced, the last at the end.

    >>> phase_steps(10, 3)
    [3, 7, 10]
    """
    return [round(steps * (number + 1) / phases) for number in range(phases)]


def sensitive(context: Context, parts: Parts) -> dict[str, nn.Parameter]:
    """What a phase may train: the head, with the norms of the model as far as they are trained at all, or everything."""
    norms = {
        id(value)
        for module in context.model.backbone.model.modules()
        if is_norm(module)
        for value in module.parameters()
    }
    return {
        name: value
        for name, value in context.model.trained().items()
        if parts == "all" or name.startswith("head.") or (parts == "head-and-norms" and id(value) in norms)
    }


@final
class ForgettingPrioritised(Rule):
    """Plain training, interrupted by short phases of SGD on a buffer of all seen classes (k-FPF, arXiv 2304.04158).

    A phase trains `parts` alone: the head and the layer norms, which stand for the batch norms of the paper's networks
    and are trained only where the adapter declares them (full, layer-norm). Its loss is over all seen classes (of the
    named task, where a stream names tasks). Examples of the task in progress, all at hand, count already. No dropout in
    a phase.

    Memory: the examples, and their logits with `distil`.
    Compute: phases x iterations x batch_size examples a task, whatever its length; stream steps replay nothing.
    Differs:
    - Phases are spaced within each task, as the length of a stream is not known: k of the paper is `phases` times the
      number of tasks.
    """

    name: ClassVar[str] = "forgetting-prioritised"
    needs_traits: ClassVar[frozenset[Trait]] = frozenset({Trait.EXAMPLE_ROWS, Trait.COMPETING})
    idle: ClassVar[Mapping[str, object]] = {"phases": 0}

    def __init__(
        self,
        *,
        phases: Annotated[int, "times that a task is interrupted, evenly spaced, from 0"] = 3,
        iterations: Annotated[int, "SGD steps of each phase, from 0"] = 20,
        size: Annotated[int, "most examples kept, in equal shares of the classes"] = 500,
        batch_size: Annotated[int, "examples in a step of a phase"] = 32,
        lr: Annotated[float, "learning rate of the phases' SGD"] = 0.05,
        distil: Annotated[float, "weight of the distance to stored logits (k-FPF-KD); 0: none"] = 0.0,
        parts: Annotated[Parts, "what a phase trains; head and norms forget most", "paper"] = "head-and-norms",
    ) -> None:
        check_sizes(size, batch_size)
        if min(phases, iterations) < 0:
            raise ConfigError(f"phases is {phases} and iterations {iterations}; neither may be below 0")
        self.phases, self.iterations, self.size, self.batch_size = phases, iterations, size, batch_size
        self.lr, self.distil, self.parts = lr, distil, parts
        self._buffer: Buffer | None = None
        self._whole: Buffer | None = None
        self._ready: Dataset | None = None
        self._step = 0

    def begin_task(self, context: Context) -> None:
        if self.phases and self.size:
            unknown = torch.full((len(context.task.data), context.task.seen), float("nan"))
            self._whole = self._offered(context, unknown)
            self._ready = self._whole.dataset(context.model.backbone)

    def _offered(self, context: Context, logits: Tensor) -> Buffer:
        """The buffer with the task in it; the same choice of examples whenever it is asked for in this task."""
        buffer = self._buffer or Buffer.empty(context.model.backbone.modality)
        generator = numpy_generator(context.task.settings.seed, "buffer", context.task.index)
        kept = logits if self.distil else None
        return offered(buffer, context.task.data, self.size, "class-balanced", generator, kept)

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        self._step = step
        return {}

    def after_step(self, context: Context) -> None:
        number = phase_steps(context.task.steps, self.phases).count(self._step + 1)
        trained = sensitive(context, self.parts)
        if not number or self._ready is None or not len(self._ready) or not trained:
            return
        context.model.adapter.train_mode(False)
        for iteration in range(number * self.iterations):
            self._iterate(context, self._ready, trained, iteration)
        context.model.adapter.train_mode(True)

    def _iterate(self, context: Context, ready: Dataset, trained: Mapping[str, nn.Parameter], iteration: int) -> None:
        generator = numpy_generator(context.task.settings.seed, "phase", context.task.index, self._step, iteration)
        rows = generator.choice(len(ready), size=min(self.batch_size, len(ready)), replace=False)
        loss = self._loss(context, ready, rows)
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        context.model.write(
            {
                name: value.detach() - self.lr * gradient
                for (name, value), gradient in zip(trained.items(), gradients, strict=True)
                if gradient is not None
            }
        )
        context.passes.ledger.examples_backward += len(rows)

    def _loss(self, context: Context, ready: Dataset, rows: Rows) -> Tensor:
        batch = context.passes.batch([(ready, rows)])
        logits = context.model.forward(batch).logits
        named = context.model.tasks_named
        competing = logits.masked_fill(~context.model.class_mask(batch.tasks), float("-inf")) if named else logits
        loss = functional.cross_entropy(competing, batch.labels)
        finished = batch.tasks < context.task.index
        if self.distil and self._whole is not None and self._whole.logits is not None and bool(finished.any()):
            stored = self._whole.logits[torch.from_numpy(rows)].to(logits.device)[finished]
            loss = loss + self.distil * logit_distance(logits[finished], stored).mean()
        return loss

    def end_task(self, context: Context) -> None:
        if self.phases and self.size:
            self._buffer = self._offered(
                context, context.passes.logits(context.task.data) if self.distil else torch.zeros(0)
            )
            self._whole, self._ready = None, None

    def state(self) -> State:
        return State() if self._buffer is None else self._buffer.state()

    def load_state(self, state: State, context: Context) -> None:
        if state.values:
            self._buffer = Buffer.from_state(state)
        if len(context.task.data):
            self.begin_task(context)
