"""What a part remembers, made explicit: named tensors and plain JSON values, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from contune.numerics.subspaces import Moments, Subspace, empty_subspace, extended
from contune.stream.modality import find_modality
from contune.stream.task import Examples, Targets


@final
@dataclass(frozen=True)
class State:
    """Named tensors and JSON values; `nested` and `inner` put one state inside another under a prefix."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def inner(self, prefix: str) -> "State":
        """The state that was nested under `prefix`; empty where there was none.

        >>> State.nested({"head": State({}, {"seen": 3})}).inner("head").values
        {'seen': 3}
        """
        start = prefix + "/"
        tensors = {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}
        return State(tensors, dict(self.values.get(prefix, {})))

    def nbytes(self) -> int:
        """Bytes of all tensors and of all texts among the values."""
        texts = sum(len(text.encode()) for text in strings_in(self.values))
        return sum(tensor.nbytes for tensor in self.tensors.values()) + texts

    @staticmethod
    def nested(states: Mapping[str, "State"]) -> "State":
        """One state that holds several, each under its own prefix."""
        tensors = {
            f"{prefix}/{name}": tensor for prefix, state in states.items() for name, tensor in state.tensors.items()
        }
        return State(tensors, {prefix: dict(state.values) for prefix, state in states.items()})


def strings_in(value: Any) -> list[str]:
    """All strings inside plain JSON values."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for item in items for text in strings_in(item)]


def on_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies of a state's tensors, which may have come from a file, where the model is."""
    return {name: tensor.clone().to(device) for name, tensor in tensors.items()}


def examples_state(examples: Examples) -> State:
    """Examples as a state, targets and all; inputs as their modality puts them away (`contune.modality`)."""
    arrays, values = find_modality(examples.modality).state(examples.inputs)
    own = {"labels": examples.labels, "ids": examples.ids}
    tensors = {name: torch.from_numpy(array) for name, array in {**own, **arrays}.items()}
    if examples.targets is not None:
        targets = {"values": examples.targets.values, "offsets": examples.targets.offsets}
        tensors |= {f"targets/{name}": torch.from_numpy(array) for name, array in targets.items()}
    return State(tensors, {"modality": examples.modality, **values})


def examples_from_state(state: State) -> Examples:
    """The examples that `examples_state` put away."""
    arrays = {name: tensor.numpy() for name, tensor in state.tensors.items()}
    inputs = find_modality(state.values["modality"]).from_state(arrays, state.values)
    examples, found = (
        Examples(inputs, arrays["labels"], arrays["ids"], state.values["modality"]),
        state.inner("targets"),
    )
    if not found.tensors:
        return examples
    return replace(examples, targets=Targets(found.tensors["values"].numpy(), found.tensors["offsets"].numpy()))


@final
@dataclass(eq=False)
class InputMemory:
    """The input subspaces of finished tasks, one for each group of modules that read the same tensor."""

    spaces: dict[str, Subspace] = field(default_factory=dict)
    leaders: dict[str, str] = field(default_factory=dict)

    def space(self, name: str) -> Subspace | None:
        """The subspace of a module's old inputs, or None before it had any."""
        return self.spaces.get(self.leaders.get(name, name))

    def grow(self, moments: Moments, threshold: float, *, squared: bool = False) -> None:
        """Take in a task's inputs; `squared`: energies are squares of the moments' eigenvalues and not these themselves."""
        self.leaders.update(moments.leaders)
        for name, moment in moments.tensors.items():
            space = self.spaces.get(name) or empty_subspace(len(moment), moment.device)
            self.spaces[name] = extended(space, moment @ moment if squared else moment, threshold)

    def state(self) -> State:
        """The memory as a state."""
        kinds = {name: space.kind for name, space in self.spaces.items()}
        tensors = {name: space.columns for name, space in self.spaces.items()}
        return State(tensors, {"kinds": kinds, "leaders": dict(self.leaders)})

    def load(self, state: State, device: torch.device) -> None:
        """Take back what `state` gave."""
        kinds = state.values["kinds"]
        self.spaces = {name: Subspace(columns.to(device), kinds[name]) for name, columns in state.tensors.items()}
        self.leaders = dict(state.values["leaders"])
