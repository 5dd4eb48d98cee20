"""Training of the model's own weights where whole tensors can be put to rest for a while."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, final

from torch import nn

from contune.adapter.weights.subset import Choice, ParameterSubset
from contune.adapter.wrapper import Around
from contune.backbone.linear import Matrix
from contune.contract.capability import BaseMatrices, LinearWeights, require
from contune.contract.context import Context
from contune.contract.options import Layers, LrScale
from contune.contract.parts import Adapter, Parameters
from contune.contract.state import State


@final
class FreezableParameters(Around):
    """As `ParameterSubset`; tensors that `freeze` have no gradient and no optimizer state, so that nothing moves them.

    What may train and what rests now are one model: all of it is remembered.
    """

    def __init__(self, name: str, choice: Choice, layers: str | Sequence[int], lr_scale: float) -> None:
        super().__init__(ParameterSubset(name, choice, layers, lr_scale))
        self.name = name  # type: ignore[misc]  # one class serves several names of the configuration
        self.layers = layers
        self.matrices_only = False
        self._frozen: set[str] = set()

    def whole(self) -> Parameters:
        """What may be trained, whether it rests or not."""
        return self.inner.trained()

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

    def linear(self) -> Mapping[str, nn.Module]:
        """The linear layers whose weights are trained now, by the names of these weights."""
        trained = self.trained()
        return {name: module for name, module in require(self.inner, LinearWeights).linear().items() if name in trained}

    def matrices(self) -> Mapping[str, Matrix]:
        """The model's matrices that are trained now, experts among them, by their names."""
        trained = self.trained()
        return {name: one for name, one in require(self.inner, BaseMatrices).matrices().items() if name in trained}

    def state(self) -> State:
        return State(self.inner.state().tensors, {"frozen": self.frozen})

    def load_state(self, state: State, context: Context) -> None:
        self.inner.load_state(state, context)
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
