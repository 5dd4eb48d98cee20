"""The untouched model beside the adapted one: both are modules, so a head may answer from both (APER, 2303.07338)."""

from typing import Annotated, final

import torch
from torch import Tensor

from contune.adapter.bottleneck.single import Bottleneck
from contune.adapter.wrapper import Around
from contune.backbone.backbone import Backbone
from contune.contract.capability import Modules, find
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Adapter
from contune.contract.state import State
from contune.errors import CombinationError


@final
class WithBase(Around):
    """Module 0 is the frozen model as it was, module 1 the model with the `inner` adapter; only that one learns.

    A head answers from F(x) = [f_0(x); f_inner(x)], twice as wide. Compute: two forward passes to answer. The
    features of module 0 are kept for good, those of module 1 once the adapter rests.
    """

    def __init__(self, inner: Adapter) -> None:
        super().__init__(inner)
        if find(inner, Modules) is not None:
            raise CombinationError(
                f"with-base puts the base model beside one adapted model, but adapter {inner.name!r} has several modules "
                "already; give an adapter with one, such as bottleneck"
            )
        self.name = "with-base"  # type: ignore[misc]  # the function of that name takes it from a configuration
        self._rests = False

    def attach(self, backbone: Backbone, seed: int) -> None:
        self.inner.attach(backbone, seed)
        base = {id(value) for value in backbone.base_parameters().values()}
        if any(id(value) in base for value in self.inner.trained().values()):
            raise CombinationError(
                f"adapter {self.inner.name!r} trains the base model's own weights, so there is no untouched model to put "
                "beside it; give an adapter that leaves them frozen, such as bottleneck"
            )
        width = self.inner.feature_size(backbone)
        if width != backbone.feature_size:
            raise CombinationError(
                f"adapter {self.inner.name!r} gives features of width {width} and the base model {backbone.feature_size}; "
                "they cannot stand side by side, take another adapter"
            )

    def end_task(self, context: Context) -> None:
        self.inner.end_task(context)
        self._rests = not context.model.adapter_trainable

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if batch.route:
            return self.inner.encode(backbone, batch)
        with self.inner.disabled():
            return backbone.features(batch.inputs, resume=batch.resume), None

    def modules(self) -> int:
        return 2

    def routes(self, tasks: Tensor) -> Tensor:
        return torch.ones_like(tasks)

    def module_state(self, module: int) -> State | None:
        if module == 0:
            return State()
        return self.inner.state() if self._rests else None

    def merge(self) -> bool:
        return False  # the base model answers too

    def state(self) -> State:
        nested = State.nested({"inner": self.inner.state()})
        return State(nested.tensors, {**nested.values, "rests": self._rests})

    def load_state(self, state: State, context: Context) -> None:
        self._rests = bool(state.values["rests"])
        self.inner.load_state(state.inner("inner"), context)


def with_base(
    *,
    adapter: Annotated[
        Adapter | None, "beside the base: a name, or {name: {option: value}}; null: bottleneck", "paper"
    ] = None,
) -> Adapter:
    """The features of the untouched model beside those of an adapted one, twice as wide (arXiv 2303.07338).

    Use it with a closed-form head and adapt: first-task, where the adapted features should not replace the general
    ones.

    Memory: the adapter.
    Compute: two forward passes to answer; features of the untouched model are computed once and kept.
    """
    return WithBase(Bottleneck() if adapter is None else adapter)
