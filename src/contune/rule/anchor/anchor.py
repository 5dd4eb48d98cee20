"""Anchors: pull weights back towards where earlier tasks left them, each by its importance (L2, EWC, MAS).

Anchored is everything trained by gradient that existed at the anchor: the adapter, and the head rows of old classes.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor

from contune.contract.capability import THROUGH_TASKS, Need
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Rule
from contune.contract.randomness import numpy_generator, torch_generator
from contune.contract.state import State, on_device

Tensors = Mapping[str, Tensor]


def anchored_distance(current: Tensors, anchor: Tensors, importance: Tensors | None = None) -> Tensor:
    """Sum over names and entries of importance * (current - anchor)^2, in name order; importance 1 where there is none.

    Where a tensor has grown since, its leading part is compared.

    >>> anchored_distance({"a": torch.tensor([1.0, 3.0, 9.0])}, {"a": torch.tensor([0.0, 1.0])}).item()
    5.0
    """
    terms = []
    for name in sorted(anchor):
        if name in current:
            difference = (grown_part(current[name], anchor[name]) - anchor[name]).square()
            terms.append((difference if importance is None else importance[name] * difference).sum())
    return torch.stack(terms).sum() if terms else torch.zeros(())


def grown_part(grown: Tensor, earlier: Tensor) -> Tensor:
    """The part of a tensor that existed earlier."""
    return grown[: len(earlier)] if earlier.dim() else grown


def snapshot(context: Context) -> dict[str, Tensor]:
    """The trained tensors as they are."""
    return {name: parameter.detach().clone() for name, parameter in context.model.trained().items()}


def added(old: Tensors, new: Tensors) -> dict[str, Tensor]:
    """Sum by name; an old tensor that has grown since counts as zero in its new part."""
    total = {name: tensor.clone() for name, tensor in new.items()}
    for name, tensor in old.items():
        if name in total:
            grown_part(total[name], tensor).add_(tensor)
    return total


def mean_over_examples(
    context: Context, count: int, scalar_of: Callable[[Batch, Tensor], Tensor], power: int
) -> Tensors:
    """Mean over examples, one at a time, of |gradient of a scalar of its scores| ** power, for every trained tensor."""
    trained = context.model.trained()
    sums = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    order = numpy_generator(context.task.settings.seed, "importance", context.task.index).permutation(
        len(context.task.data)
    )
    chosen = order[:count]
    for number in range(len(chosen)):
        batch = context.passes.batch([(context.task.data, order[number : number + 1])])
        scalar = scalar_of(batch, context.model.forward(batch).logits)
        gradients = torch.autograd.grad(scalar, list(trained.values()), allow_unused=True)
        for name, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient.abs() ** power
    return {name: total / max(len(chosen), 1) for name, total in sums.items()}


def fisher(context: Context, count: int, kind: str) -> Tensors:
    """Diagonal Fisher information: E[(d log p(y|x) / d theta)^2], y drawn from the model (`true`) or the label.

    p is the likelihood that training makes large: over the classes that compete, and of a written answer's every token.
    """
    generator = torch_generator(context.task.settings.seed, "fisher", context.task.index)

    def log_likelihood(batch: Batch, logits: Tensor) -> Tensor:
        drawn = None if kind == "empirical" else generator
        return context.model.objective.log_likelihood(context.model, batch, logits, drawn)

    return mean_over_examples(context, count, log_likelihood, 2)


@final
class Anchor:
    """Where the last task left what is trained, and how much each of its entries matters; 1 where nothing is said."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] = {}

    def pull(self, context: Context, strength: float, *, weighed: bool = True) -> Tensor | None:
        """`strength` times the distance to the anchor; None where there is none yet."""
        if not strength or not self.values:
            return None
        return strength * anchored_distance(context.model.trained(), self.values, self.importance if weighed else None)

    def move(self, values: Tensors, importance: Tensors | None = None, *, decay: float = 1.0) -> None:
        """Anchor at these values; what matters is added to what did, times `decay`."""
        if importance is not None:
            decayed = (
                {name: decay * tensor for name, tensor in self.importance.items()} if decay != 1 else self.importance
            )
            self.importance = added(decayed, importance)
        self.values = dict(values)

    def state(self) -> State:
        """Values and importance as one state."""
        return State.nested({"anchor": State(self.values), "importance": State(self.importance)})

    def load_state(self, state: State, context: Context) -> None:
        """Take back what `state` gave, where the model is."""
        device = context.model.backbone.device
        self.values = on_device(state.inner("anchor").tensors, device)
        self.importance = on_device(state.inner("importance").tensors, device)


@final
class L2(Rule):
    """Adds strength * ||theta - theta at the end of the last task||^2 (arXiv 2203.17269, section 4).

    Memory: the trained tensors once more.
    Compute: one sum a step.
    """

    name = "l2"
    needs: ClassVar[tuple[Need, ...]] = (THROUGH_TASKS,)
    idle: ClassVar[Mapping[str, object]] = {"strength": 0.0}

    def __init__(
        self,
        *,
        strength: Annotated[float, "factor of the squared distance to the old values, from 0"] = 0.01,
        from_start: Annotated[bool, "in the first task too, hold the adapter to the pretrained model"] = False,
    ) -> None:
        self.strength, self.from_start = strength, from_start
        self._anchor = Anchor()

    def begin_task(self, context: Context) -> None:
        if self.from_start and not self._anchor.values:
            self._anchor.move({name: t for name, t in snapshot(context).items() if name.startswith("adapter.")})

    def penalty(self, context: Context) -> Tensor | None:
        return self._anchor.pull(context, self.strength, weighed=False)

    def end_task(self, context: Context) -> None:
        self._anchor.move(snapshot(context))

    def state(self) -> State:
        return self._anchor.state()

    def load_state(self, state: State, context: Context) -> None:
        self._anchor.load_state(state, context)


@final
class EWC(Rule):
    """Adds strength / 2 * sum F (theta - theta*)^2 (arXiv 1612.00796, equation 3), one running anchor.

    F is the Fisher information from gradients of single examples at the end of each task, summed over tasks with the
    older ones times `decay` (online EWC, arXiv 1805.06370).

    Memory: the trained tensors twice more.
    Compute: `examples` backward passes a task, one sum a step.
    """

    name = "ewc"
    needs: ClassVar[tuple[Need, ...]] = (THROUGH_TASKS,)
    idle: ClassVar[Mapping[str, object]] = {"strength": 0.0}

    def __init__(
        self,
        *,
        strength: Annotated[float, "factor of the penalty, from 0; what suits depends on model and data"] = 100.0,
        examples: Annotated[int, "examples of each task that importance is measured on, one backward pass each"] = 200,
        fisher: Annotated[Literal["true", "empirical"], "labels drawn from the model, or the data's own"] = "true",
        decay: Annotated[float, "share of old importance kept when a task ends; 1: all of it"] = 1.0,
    ) -> None:
        self.strength, self.examples, self.fisher, self.decay = strength, examples, fisher, decay
        self._anchor = Anchor()

    def penalty(self, context: Context) -> Tensor | None:
        return self._anchor.pull(context, self.strength / 2)

    def end_task(self, context: Context) -> None:
        self._anchor.move(snapshot(context), fisher(context, self.examples, self.fisher), decay=self.decay)

    def state(self) -> State:
        return self._anchor.state()

    def load_state(self, state: State, context: Context) -> None:
        self._anchor.load_state(state, context)


@final
class MAS(Rule):
    """Adds strength * sum Omega (theta - theta*)^2, Omega = mean |d ||logits||^2 / d theta| (arXiv 1711.09601, eq. 3).

    Needs no labels. Omega is summed over tasks and taken from single examples at the end of each. The logits are those
    that were trained: of the classes that compete in the loss, as the paper's are those of the task's own head.

    Memory: the trained tensors twice more.
    Compute: `examples` backward passes a task, one sum a step.
    """

    name = "mas"
    needs: ClassVar[tuple[Need, ...]] = (THROUGH_TASKS,)
    idle: ClassVar[Mapping[str, object]] = {"strength": 0.0}

    def __init__(
        self,
        *,
        strength: Annotated[float, "factor of the penalty, from 0; what suits depends on model and data"] = 1.0,
        examples: Annotated[int, "examples of each task that importance is measured on, one backward pass each"] = 200,
    ) -> None:
        self.strength, self.examples = strength, examples
        self._anchor = Anchor()

    def penalty(self, context: Context) -> Tensor | None:
        return self._anchor.pull(context, self.strength)

    def end_task(self, context: Context) -> None:
        def squared_norm(batch: Batch, logits: Tensor) -> Tensor:
            return (logits.square() * context.model.objective.trained_columns(context.model, batch)).sum()

        self._anchor.move(snapshot(context), mean_over_examples(context, self.examples, squared_norm, 1))

    def state(self) -> State:
        return self._anchor.state()

    def load_state(self, state: State, context: Context) -> None:
        self._anchor.load_state(state, context)
