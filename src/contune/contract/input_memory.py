"""What goes into linear layers, over a task's data: second moments of it, and the memory of it from task to task."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from contune.backbone.reader.inputs import ModelInputs
from contune.contract.context import Context
from contune.contract.state import State
from contune.numerics.subspaces import Moments, Subspace, empty_subspace, extended, token_rows


@final
class _Tally:
    """Sums of x x^T while batches pass by."""

    def __init__(self) -> None:
        self.inputs = ModelInputs(0)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.leaders: dict[str, str] = {}
        self._last: tuple[str, Tensor] | None = None

    def note(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        """One call of a module. Modules fed by one tensor are called one after the other."""
        del module
        given = args[0]
        if self._last is not None and self._last[1] is given:
            self.leaders[name] = self._last[0]
            return
        self._last = (name, given)
        self.leaders[name] = name
        rows = token_rows(given.detach(), self.inputs.tokens(given)).float()
        with torch.autocast(rows.device.type, enabled=False):  # a product in bf16 may not be positive semi-definite
            product = (rows.T @ rows).double()
        self.sums[name] = self.sums[name] + product if name in self.sums else product
        self.counts[name] = self.counts.get(name, 0) + len(rows)

    def forget_last(self) -> None:
        """Let go of the tensor that the last module read."""
        self._last = None


def input_moments(context: Context, modules: Mapping[str, nn.Module]) -> Moments:
    """The second moments of what these modules read in one pass over `context.task.data`, over all tokens.

    In the deterministic view and with the adapter as it is. Products of a batch are in float32, their sum is in
    float64. Modules that no batch reached are left out. Memory: d^2 values in float64 per module.
    """
    tally = _Tally()
    with torch.no_grad(), ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(partial(tally.note, name))
            stack.callback(handle.remove)
        for batch in context.passes.batches(context.task.data):
            tally.inputs = batch.inputs
            context.model.encode(batch)
            tally.forget_last()
    return Moments({name: total / max(tally.counts[name], 1) for name, total in tally.sums.items()}, tally.leaders)


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
