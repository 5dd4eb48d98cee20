"""Head rows of classes that have no part in a step: weight decay and momentum leave them alone.

With the loss over the task's own classes a row of another class has no gradient, but an optimizer with weight decay
shrinks it all the same: by a fifth in a task, and the class with it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from contune.contract.context import Context
from contune.contract.data import Selection


def resting_rows(context: Context, selections: Mapping[str, Selection]) -> dict[nn.Parameter, Tensor]:
    """Which rows (C,) of the head's tensors rest in a step on these rows, told after the gradients are there.

    Those of classes that no selected example may be scored on, as far as nothing else, such as distillation, gives them a
    gradient. None where there is no weight decay: what has no gradient does not move then, or by momentum that it has
    earned.
    """
    head, trained = context.model.head, context.model.trained()
    names = [name for name in head.class_rows if f"head.{name}" in trained]
    if not context.task.settings.weight_decay or not names:
        return {}
    tasks = [torch.from_numpy(each.dataset.tasks[each.rows]) for each in selections.values()]
    closed = ~context.model.class_mask(torch.unique(torch.cat(tasks))).any(dim=0)
    found = {}
    for name in names:
        parameter = trained[f"head.{name}"]
        if parameter.grad is not None and len(parameter) == len(closed) and bool(closed.any()):
            still = ~parameter.grad.reshape(len(parameter), -1).bool().any(dim=1)
            found[parameter] = closed.to(still.device) & still
    return found


@contextmanager
def rested(optimizer: torch.optim.Optimizer, resting: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """The optimizer's step in this block moves neither these rows nor what it remembers of them, by any bit."""
    before = {parameter: parameter.detach()[rows].clone() for parameter, rows in resting.items()}
    memory = {parameter: row_memory(optimizer, parameter, rows) for parameter, rows in resting.items()}
    yield
    with torch.no_grad():
        for parameter, rows in resting.items():
            parameter[rows] = before[parameter]
            for key, value in row_memory(optimizer, parameter, rows).items():
                kept = memory[parameter].get(key)
                optimizer.state[parameter][key][rows] = torch.zeros_like(value) if kept is None else kept


def row_memory(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, rows: Tensor) -> dict[str, Tensor]:
    """What an optimizer remembers of these rows (C,) of a parameter."""
    known = optimizer.state.get(parameter, {})
    shaped = {
        key: value for key, value in known.items() if isinstance(value, Tensor) and value.shape == parameter.shape
    }
    return {key: value[rows].clone() for key, value in shaped.items()}
