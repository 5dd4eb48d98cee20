"""Heads trained by gradient that grow with the classes: linear and cosine."""

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.contract.context import Context
from contune.contract.parts import Head, Parameters, Trait
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.errors import ConfigError
from contune.head.options import HeadLrScale, LossOver

START_SCALE = 1.0  # where a cosine head's learnt factor starts (APER, 2303.07338)
Kind = Literal["linear", "cosine"]


def grown(
    weight: Tensor | None, rows: int, width: int, generator: torch.Generator, spread: float | None = None
) -> Tensor:
    """`weight` (old rows, width) with new rows below it, uniform in +-1/sqrt(width) as torch starts a linear layer.

    With a `spread` they are normal with that deviation.

    >>> grown(torch.ones(1, 2), 2, 2, torch.Generator(), spread=0.0).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    old = torch.zeros(0, width) if weight is None else weight.detach().cpu()
    shape = (rows - len(old), width)
    if spread is not None:
        return torch.cat([old, torch.randn(shape, generator=generator) * spread if spread else torch.zeros(shape)])
    return torch.cat([old, (torch.rand(shape, generator=generator) * 2 - 1) / width**0.5])


def strongest(scores: Callable[[Tensor], Tensor], features: Tensor, width: int) -> Tensor:
    """Scores (B, C) of features (B, m width): with several modules side by side, log of the largest softmax of each class.

    LAE (arXiv 2303.10070), equation 10, stated there for two modules.
    """
    if features.shape[1] == width:
        return scores(features)
    each = [functional.log_softmax(scores(part), dim=1) for part in torch.split(features, width, dim=1)]
    return torch.stack(each).amax(dim=0)


@final
class Linear(Head):
    """One weight row and one bias per class; where several modules answer, the surest one wins.

    Where a task has few steps, the draw of its rows is still in its answers at the end: released code often starts them
    at zero or near, `start_spread`, and plain training as torch's linear layers.

    Memory: (d + 1) x classes.
    Compute: a matrix product a step.
    """

    name: ClassVar[str] = "linear"
    needs_traits: ClassVar[frozenset[Trait]] = frozenset()
    takes_modules: ClassVar[Literal["one", "fixed", "growing"]] = "growing"
    class_rows: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(
        self,
        *,
        loss_over: LossOver = "seen",
        lr_scale: HeadLrScale = 1.0,
        start_spread: Annotated[
            float | None,
            "rows of new classes start normal with this deviation, from 0; null: uniform in +-1/sqrt(width)",
        ] = None,
    ) -> None:
        if start_spread is not None and start_spread < 0:
            raise ConfigError(f"start_spread is {start_spread}; give a number from 0, or null for uniform rows")
        self.loss_over = loss_over
        self.lr_scale = lr_scale
        self.start_spread = start_spread
        self._weight: nn.Parameter | None = None
        self._bias: nn.Parameter | None = None

    def begin_task(self, context: Context) -> None:
        width = context.model.adapter.feature_size(context.model.backbone)
        generator = torch_generator(context.task.settings.seed, "head", context.task.index)
        old = 0 if self._bias is None else len(self._bias)
        bias = torch.zeros(context.task.seen)
        if self._bias is not None:
            bias[:old] = self._bias.detach().cpu()
        weight = grown(self._weight, context.task.seen, width, generator, self.start_spread)
        self._set(weight, bias, context.model.backbone.device)

    def _set(self, weight: Tensor, bias: Tensor, device: torch.device) -> None:
        self._weight, self._bias = nn.Parameter(weight.to(device)), nn.Parameter(bias.to(device))

    def trained(self) -> Parameters:
        if self._weight is None or self._bias is None:
            return {}
        return {"weight": self._weight, "bias": self._bias}

    def logits(self, features: Tensor) -> Tensor:
        assert self._weight is not None
        return strongest(self._scores, features, self._weight.shape[1])

    def _scores(self, features: Tensor) -> Tensor:
        assert self._weight is not None
        return functional.linear(features, self._weight, self._bias)

    def state(self) -> State:
        return State({name: value.detach() for name, value in self.trained().items()})

    def load_state(self, state: State, context: Context) -> None:
        self._set(state.tensors["weight"], state.tensors["bias"], context.model.backbone.device)


@final
class Cosine(Head):
    """Cosine of feature and class weight, times a learnt scale (APER, arXiv 2303.07338).

    Memory: d x classes.
    Compute: a matrix product a step.
    """

    name: ClassVar[str] = "cosine"
    needs_traits: ClassVar[frozenset[Trait]] = frozenset({Trait.COMPETING, Trait.CLASSES})
    takes_modules: ClassVar[Literal["one", "fixed", "growing"]] = "growing"
    class_rows: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(
        self,
        *,
        loss_over: LossOver = "seen",
        lr_scale: HeadLrScale = 1.0,
        scale: Annotated[float, "where the learnt factor of the cosines starts"] = 10.0,
    ) -> None:
        self.loss_over = loss_over
        self.lr_scale = lr_scale
        self.scale = scale
        self._weight: nn.Parameter | None = None
        self._scale: nn.Parameter | None = None

    def begin_task(self, context: Context) -> None:
        width = context.model.adapter.feature_size(context.model.backbone)
        generator = torch_generator(context.task.settings.seed, "head", context.task.index)
        scale = torch.tensor(self.scale) if self._scale is None else self._scale.detach().cpu()
        self._set(grown(self._weight, context.task.seen, width, generator), scale, context.model.backbone.device)

    def _set(self, weight: Tensor, scale: Tensor, device: torch.device) -> None:
        self._weight, self._scale = nn.Parameter(weight.to(device)), nn.Parameter(scale.to(device))

    def trained(self) -> Parameters:
        if self._weight is None or self._scale is None:
            return {}
        return {"weight": self._weight, "scale": self._scale}

    def logits(self, features: Tensor) -> Tensor:
        assert self._weight is not None
        return strongest(self._scores, features, self._weight.shape[1])

    def _scores(self, features: Tensor) -> Tensor:
        assert self._weight is not None
        assert self._scale is not None
        return self._scale * functional.normalize(features, dim=1) @ functional.normalize(self._weight, dim=1).T

    def state(self) -> State:
        return State({name: value.detach() for name, value in self.trained().items()})

    def load_state(self, state: State, context: Context) -> None:
        self._set(state.tensors["weight"], state.tensors["scale"], context.model.backbone.device)


def auxiliary_head(kind: Kind) -> Linear | Cosine:
    """A head of this kind that has seen no task.

    >>> auxiliary_head("cosine").name
    'cosine'
    """
    return Linear() if kind == "linear" else Cosine(scale=START_SCALE)


@final
class Auxiliary:
    """The lent head: it grows where the adapter trains in a task that begins, and is another one after the task.

    A cosine says something where classes compete alone; elsewhere a `linear` head is lent in its place.
    """

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._head = auxiliary_head(kind)

    def begin_task(self, context: Context) -> None:
        """Grow to the columns of the task, where the adapter trains."""
        if context.model.adapter_trainable and context.model.adapter.trained():
            self._choose(context)
            self._head.begin_task(context)

    def _choose(self, context: Context) -> None:
        if not context.model.objective.traits >= Cosine.needs_traits:
            self._kind, self._head = "linear", auxiliary_head("linear")

    def trained(self) -> Parameters:
        """What is trained of it."""
        return self._head.trained()

    def logits(self, features: Tensor) -> Tensor:
        """Scores (B, seen)."""
        return self._head.logits(features)

    def drop(self) -> None:
        """Forget what it learned."""
        self._head = auxiliary_head(self._kind)

    def tensors(self) -> dict[str, Tensor]:
        """Its state, as part of the state of the head that lends it."""
        return dict(State.nested({"lent": self._head.state()}).tensors)

    def load(self, state: State, context: Context) -> None:
        """Take it back from the state of the head that lends it."""
        own = state.inner("lent")
        if own.tensors:
            self._choose(context)
            self._head.load_state(own, context)
