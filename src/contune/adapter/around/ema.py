"""An adapter that learns, and a slow running mean of it that answers beside it (LAE, arXiv 2303.10070)."""

from typing import Annotated, final

import torch
from torch import Tensor

from contune.adapter.lora.calibrated import CalibratedLora
from contune.adapter.wrapper import Around, exchanged
from contune.backbone.backbone import Backbone
from contune.contract.capability import Lifetime, Modules, find
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Adapter, Tensors
from contune.contract.state import State, on_device
from contune.errors import CombinationError, ConfigError
from contune.numerics.averages import moved_average


@final
class EmaAdapter(Around):
    """Module 0 is the `inner` adapter as it learns (online), module 1 a running mean of its tensors (offline).

    The offline copy is made of the online adapter when the second task begins; until then there is one module. After
    every step off <- decay off + (1 - decay) on, also while rule freeze-first keeps the adapter still, as in the released
    code. It is never trained. A head such as linear answers by the larger of the two softmaxes of each class. Factors are
    averaged, not their products. Memory: the inner adapter twice. Compute: two forward passes to answer. Where the task is
    named, and in training, the online module alone is used.
    """

    def __init__(self, inner: Adapter, decay: float) -> None:
        super().__init__(inner)
        if not 0 <= decay <= 1:
            raise ConfigError(f"decay is {decay}; give a number from 0 to 1")
        if find(inner, Modules) is not None or inner.lifetime not in Lifetime.LASTING | Lifetime.RESTARTED:
            raise CombinationError(
                f"ema-adapter keeps a running mean of tensors that live through all tasks, and adapter {inner.name!r} "
                "has none or trains others in every task; give an adapter such as calibrated-lora, lora or bottleneck"
            )
        self.name = "ema-adapter"  # type: ignore[misc]  # the function of that name takes it from a configuration
        self.decay = decay
        self._offline: dict[str, Tensor] = {}
        self._rests = False

    def begin_task(self, context: Context) -> None:
        if context.task.index > 0 and context.model.adapter_trainable and not self._offline:
            self._offline = {name: value.detach().clone() for name, value in self.inner.trained().items()}
        self.inner.begin_task(context)

    def end_task(self, context: Context) -> None:
        self.inner.end_task(context)
        self._rests = not context.model.adapter_trainable

    def offline(self) -> Tensors:
        """The running mean, by the names of the trained tensors; empty in the first task."""
        return self._offline

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if batch.route == 0:
            return self.inner.encode(backbone, batch)
        with torch.no_grad(), exchanged(self.inner.trained(), self._offline):
            return self.inner.encode(backbone, batch)

    def modules(self) -> int:
        return 2 if self._offline else 1

    def routes(self, tasks: Tensor) -> Tensor:
        return torch.zeros_like(tasks)

    def module_state(self, module: int) -> State | None:
        return self.inner.state() if self._rests and module == 0 else None

    def after_step(self, context: Context) -> None:
        self.inner.after_step(context)
        self._offline = moved_average(self._offline, self.inner.trained(), self.decay)

    def merge(self) -> bool:
        return False  # the running mean answers too

    def state(self) -> State:
        nested = State.nested({"inner": self.inner.state(), "offline": State(self._offline)})
        return State(nested.tensors, {**nested.values, "rests": self._rests})

    def load_state(self, state: State, context: Context) -> None:
        self._rests = bool(state.values["rests"])
        self.inner.load_state(state.inner("inner"), context)
        device = context.model.backbone.device
        self._offline = on_device(state.inner("offline").tensors, device)


def ema_adapter(
    *,
    adapter: Annotated[
        Adapter | None, "what learns: a name, or {name: {option: value}}; null: calibrated-lora", "released code"
    ] = None,
    decay: Annotated[
        float, "share of the mean that a step keeps, 0 to 1; less follows faster", "released code"
    ] = 0.9999,
) -> Adapter:
    """An adapter that learns, and a slow running mean of it; both answer, each class by the surer one (arXiv 2303.10070).

    Use it where one adapter lives through the whole stream and its last task must not have the last word. Any adapter
    with one module that goes on learning will do, such as calibrated-lora, lora or bottleneck.

    Memory: the adapter twice.
    Compute: two forward passes to answer.
    """
    return EmaAdapter(CalibratedLora() if adapter is None else adapter, decay)
