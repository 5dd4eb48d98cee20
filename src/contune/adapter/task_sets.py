"""Tensors of one task after the other: what adapters with a module per task keep."""

from typing import final

import torch
from torch import Tensor, nn

from contune.contract.parts import Tensors
from contune.contract.state import State


@final
class TaskSets:
    """One set of named tensors per experience: the last one trains, those before it never change again.

    A experience is one task as a rule; several tasks that are learned as one share a set.
    """

    def __init__(self) -> None:
        self._sets: list[dict[str, nn.Parameter]] = []
        self._starts: list[int] = []
        self._finished = 0

    def __len__(self) -> int:
        return len(self._sets)

    def __getitem__(self, module: int) -> dict[str, nn.Parameter]:
        return self._sets[module]

    def append(self, values: Tensors, device: torch.device, first_task: int) -> None:
        """Freeze the sets so far and add one that trains, from a copy of these values, for tasks from `first_task` on."""
        for finished in self._sets[-1:]:
            for parameter in finished.values():
                parameter.requires_grad_(False)
        self._sets.append({name: nn.Parameter(value.detach().clone().to(device)) for name, value in values.items()})
        self._starts.append(first_task)

    def finish(self) -> None:
        """Every set so far has learned its task."""
        self._finished = len(self._sets)

    def trained(self) -> dict[str, nn.Parameter]:
        """The last set, by names that no other task has."""
        last = len(self._sets) - 1
        return {f"task{last}.{name}": value for name, value in self._sets[last].items()} if self._sets else {}

    def routes(self, tasks: Tensor) -> Tensor:
        """The set (B,) of each of these tasks; where an adapter learned in the first task only, all go through its set."""
        starts = torch.tensor(self._starts, dtype=tasks.dtype, device=tasks.device)
        return (torch.searchsorted(starts, tasks.contiguous(), right=True) - 1).clamp(min=0)

    def done(self, module: int) -> State | None:
        """The tensors of a set that has learned its task, or None."""
        if module >= self._finished:
            return None
        return State({name: value.detach() for name, value in self._sets[module].items()})

    def state(self) -> State:
        """All sets."""
        tensors = {
            f"task{task}/{name}": value.detach()
            for task, values in enumerate(self._sets)
            for name, value in values.items()
        }
        return State(tensors, {"starts": list(self._starts), "finished": self._finished})

    def load_state(self, state: State, device: torch.device) -> None:
        """Take back what `state` gave."""
        self._sets, self._starts = [], []
        for task, start in enumerate(state.values["starts"]):
            self.append(state.inner(f"task{task}").tensors, device, int(start))
        self._finished = int(state.values["finished"])
