"""Training of the model's own weights where whole tensors can be put to rest for a while."""

from collections.abc import Collection, Sequence
from typing import Annotated, final

from torch import Tensor

from contune.adapter.weights.subset import Choice, ParameterSubset
from contune.backbone.backbone import Backbone
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.options import Layers, LrScale
from contune.contract.parts import Adapter, Parameters
from contune.contract.state import State


@final
class FreezableParameters(Adapter):
    """As `ParameterSubset`; tensors that `freeze` have no gradient and no optimizer state, so that nothing moves them.

    What may train and what rests now are one model: all of it is remembered.
    """

    def __init__(self, name: str, choice: Choice, layers: str | Sequence[int], lr_scale: float) -> None:
        self.name = name  # type: ignore[misc]  # one class serves several names of the configuration
        self.lr_scale = lr_scale
        self.layers = layers
        self._inner = ParameterSubset(name, choice, layers, lr_scale)
        self._frozen: set[str] = set()

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._inner.attach(backbone, seed)

    def whole(self) -> Parameters:
        """What may be trained, whether it rests or not."""
        return self._inner.trained()

    def freeze(self, names: Collection[str]) -> None:
        """From now on let these tensors rest, and no others."""
        self._frozen = set(names)
        for name, parameter in self.whole().items():
            parameter.requires_grad_(name not in self._frozen)

    @property
    def frozen(self) -> list[str]:
        """Names of the tensors that rest."""
        return sorted(self._frozen)

    def trained(self) -> Parameters:
        return {name: value for name, value in self.whole().items() if name not in self._frozen}

    def lowest_layer(self, backbone: Backbone) -> int:
        return self._inner.lowest_layer(backbone)

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self._inner.encode(backbone, batch)

    def merge(self) -> bool:
        return self._inner.merge()

    def state(self) -> State:
        return State(self._inner.state().tensors, {"frozen": self.frozen})

    def load_state(self, state: State, context: Context) -> None:
        self._inner.load_state(state, context)
        self.freeze(state.values["frozen"])


def freezable(
    *,
    layers: Layers = "all",
    lr_scale: Annotated[LrScale, "SLCA (2303.05118), section 3.2"] = 0.01,
) -> Adapter:
    """Every weight as `full` trains it, of which a rule may let whole tensors rest in a task.

    Memory: the model in place of the base, and the optimizer's two copies of what trains.
    Compute: a full backward pass.
    """
    return FreezableParameters("freezable", lambda _name, _owner: True, layers, lr_scale)
