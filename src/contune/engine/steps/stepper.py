"""Gradient steps on data that comes in chunks: one optimizer whose memory lives from chunk to chunk."""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.data import TASK, Selection
from contune.contract.parts import Rule
from contune.contract.processes import Processes
from contune.contract.state import State
from contune.engine.steps.loop import take_step
from contune.engine.steps.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors
from contune.metric.ledger import Ledger


def grown_memory(memory: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An optimizer's memory for tensors that have grown since: zero in the new rows; gone with tensors that are gone.

    >>> grown_memory({"a|exp_avg": torch.ones(1, 2)}, {"a": torch.zeros(2, 2)})["a|exp_avg"].tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    found = {}
    for label, value in memory.items():
        name = label.rsplit("|", 1)[0]
        if name not in trained:
            continue
        if value.dim() and value.shape != trained[name].shape:
            wide = value.new_zeros(trained[name].shape)
            wide[tuple(slice(size) for size in value.shape)] = value
            value = wide
        found[label] = value
    return found


@final
class Stepper:
    """Takes steps on chunks. The learning rate stays as it is, since nobody knows how many steps there will be.

    `updates_per_example` of a chunk's examples are owed as steps; a fraction is carried to the next chunk.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}
        self._steps = 0
        self._owed = 0.0

    def steps_for(self, examples: int, updates_per_example: float) -> int:
        """How many steps these examples bring, with what is owed from those before."""
        self._owed += examples * updates_per_example
        steps = int(self._owed + 1e-9)
        self._owed -= steps
        return steps

    def take(self, context: Context, rules: Sequence[Rule], processes: Processes, ledger: Ledger, steps: int) -> None:
        """So many steps on the context's data, each on all of it and on what the rules add."""
        rows = np.arange(len(context.task.data))
        with _Optimizer(context, self._memory) as optimizer:
            for _ in range(steps):
                selections = {TASK: Selection(context.task.data, rows)}
                for rule in rules:
                    selections |= rule.select(context, 0, self._steps)
                take_step(context, rules, processes, optimizer.inner, selections, (0, self._steps))
                self._steps += 1
                ledger.steps += 1
                ledger.examples_backward += sum(len(selection.rows) for selection in selections.values())
            self._memory = optimizer.memory()

    def adapt(self, context: Context, rules: Sequence[Rule], processes: Processes, ledger: Ledger) -> None:
        """One step on data whose right answers nobody knows, by what the rules make of it."""
        selections = {TASK: Selection(context.task.data, np.arange(len(context.task.data)))}
        with _Optimizer(context, self._memory) as optimizer:
            take_step(context, rules, processes, optimizer.inner, selections, (0, self._steps), labelled=False)
            self._memory = optimizer.memory()
        self._steps += 1
        ledger.steps += 1
        ledger.examples_backward += len(context.task.data)

    def state(self) -> State:
        """What the next chunk needs to know."""
        return State(dict(self._memory), {"steps": self._steps, "owed": self._owed})

    def load_state(self, state: State) -> None:
        """Take back what `state` gave."""
        self._memory = dict(state.tensors)
        self._steps, self._owed = int(state.values.get("steps", 0)), float(state.values.get("owed", 0.0))


@final
class _Optimizer:
    """An optimizer for one step, with the memory of those before."""

    def __init__(self, context: Context, memory: Mapping[str, Tensor]) -> None:
        self._adapter = context.model.adapter
        self._trained = context.model.trained()
        self.inner: torch.optim.Optimizer = make_optimizer(context)
        load_optimizer_tensors(self.inner, self._trained, grown_memory(memory, self._trained))

    def __enter__(self) -> "_Optimizer":
        self._adapter.train_mode(True)
        return self

    def __exit__(self, *_: object) -> None:
        self.inner.zero_grad(set_to_none=True)
        self._adapter.train_mode(False)

    def memory(self) -> dict[str, Tensor]:
        """What the optimizer remembers."""
        return {name: value.detach().clone() for name, value in optimizer_tensors(self.inner, self._trained).items()}
