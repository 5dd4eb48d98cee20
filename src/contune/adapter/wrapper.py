"""What all adapters around another adapter share: everything is the inner adapter's, unless the outer one says otherwise."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from contune.backbone.backbone import Backbone
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Adapter, Parameters
from contune.contract.state import State


class Around(Adapter):
    """An adapter around another one, `inner`; this is the only place that forwards.

    Hooks, flags and abilities are those of `inner`. An outer adapter overrides the hooks that it changes, has the abilities
    whose members it defines, and names in `hides` the inner adapter's abilities that it takes away. One that trains other
    tensors than `inner`, or the same under other names, must define anew, or hide, every ability that speaks of these.
    """

    hides: ClassVar[tuple[type, ...]] = ()

    @abstractmethod
    def __init__(self, inner: Adapter) -> None:
        self.inner = inner
        self.lr_scale, self.lifetime = inner.lr_scale, inner.lifetime
        # Flags are of the class elsewhere; here those of the inner adapter, whichever it is.
        self.needs_traits = inner.needs_traits  # type: ignore[misc]
        self.needs_queries, self.supports_packing = inner.needs_queries, inner.supports_packing  # type: ignore[misc]

    def offers(self, ability: type) -> object | None:
        if isinstance(self, ability):
            return self
        return None if ability in self.hides else self.inner.offers(ability)

    def attach(self, backbone: Backbone, seed: int) -> None:
        self.inner.attach(backbone, seed)

    def begin_task(self, context: Context) -> None:
        self.inner.begin_task(context)

    def meet(self, context: Context) -> None:
        self.inner.meet(context)

    def end_task(self, context: Context) -> None:
        self.inner.end_task(context)

    def trained(self) -> Parameters:
        return self.inner.trained()

    def rate(self, name: str) -> float:
        return self.inner.rate(name)

    def lowest_layer(self, backbone: Backbone) -> int:
        return self.inner.lowest_layer(backbone)

    def feature_size(self, backbone: Backbone) -> int:
        return self.inner.feature_size(backbone)

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self.inner.encode(backbone, batch)

    def after_step(self, context: Context) -> None:
        self.inner.after_step(context)

    def disabled(self) -> AbstractContextManager[None]:
        return self.inner.disabled()

    def train_mode(self, training: bool) -> None:
        self.inner.train_mode(training)

    def export(self, folder: Path) -> bool:
        return self.inner.export(folder)

    def export_answering(self, folder: Path) -> bool:
        return self.inner.export_answering(folder)

    def merge(self) -> bool:
        return self.inner.merge()

    def diagnostics(self) -> Mapping[str, float]:
        return self.inner.diagnostics()

    def state(self) -> State:
        return self.inner.state()

    def load_state(self, state: State, context: Context) -> None:
        self.inner.load_state(state, context)


@contextmanager
def exchanged(parameters: Parameters, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The block sees these values in place of the parameters of the same names."""
    kept = {name: parameters[name].data for name in values}
    for name, value in values.items():
        parameters[name].data = value
    try:
        yield
    finally:
        for name, value in kept.items():
            parameters[name].data = value
