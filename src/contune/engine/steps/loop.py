"""The one gradient loop.

for batch:
    rules.select         replay mixes in the past
    rules.before_step    perturb what is trained
    forward              from cached features, queries or lower layers where they are frozen
    loss                 the objective's + the rules' terms + the adapter's and the router's own
    finite?              otherwise stop before anything is changed
    backward, sum over processes, rules.gradients, clip, optimizer step, rules.moves
    after_step           running means of rules and adapter, then progress and checkpoints
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor
from torch.nn import Parameter

from contune.contract.context import Context
from contune.contract.data import TASK, Batch, Outputs, Rows, Selection
from contune.contract.parts import Rule, Tensors
from contune.contract.processes import Processes
from contune.contract.randomness import derived_seed, numpy_generator, seed_global, torch_generator
from contune.engine.steps.optimizer import (
    epoch_batches,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    rate_factor,
    set_rate,
)
from contune.engine.steps.resting_rows import rested, resting_rows
from contune.errors import NumericError
from contune.metric.ledger import Ledger


@final
@dataclass(frozen=True, eq=False)
class StepReport:
    """What a step did; `step` steps of this task are done. `memory` gives the optimizer's tensors when asked."""

    epoch: int
    step: int
    steps: int
    loss: float
    examples: int
    memory: Callable[[], dict[str, Tensor]]


AfterStep = Callable[[StepReport], None]


def steps_of(context: Context) -> int:
    """Gradient steps of the task; 0 where nothing is trained by gradient."""
    return context.task.steps if context.model.trained() else 0


def train(
    context: Context,
    rules: Sequence[Rule],
    processes: Processes,
    ledger: Ledger,
    after_step: AfterStep,
    *,
    done: int = 0,
    memory: Mapping[str, Tensor] | None = None,
) -> None:
    """Take the task's gradient steps; `done` of them and the optimizer's `memory` come from a checkpoint."""
    steps = steps_of(context)
    if done >= steps:
        return
    trained = context.model.trained()
    optimizer = make_optimizer(context)
    load_optimizer_tensors(optimizer, trained, memory or {})
    settings, per_epoch = context.task.settings, context.task.steps_per_epoch
    context.model.adapter.train_mode(True)
    for epoch in range(done // per_epoch, context.task.epochs):
        generator = numpy_generator(settings.seed, "order", context.task.index, epoch)
        lengths = context.task.data.prepared.lengths
        group, count = settings.group_by_length, settings.batches
        order = epoch_batches(lengths, settings.batch_size, generator, group=group, count=count)
        for number in range(max(0, done - epoch * per_epoch), per_epoch):
            step = epoch * per_epoch + number
            selections = {TASK: Selection(context.task.data, order[number])}
            for rule in rules:
                selections |= rule.select(context, epoch, step)
            set_rate(optimizer, rate_factor(settings, step, steps, task=context.task.index))
            loss = take_step(context, rules, processes, optimizer, selections, (epoch, step))
            ledger.steps += 1
            rows = sum(len(selection.rows) for selection in selections.values())
            ledger.examples_backward += rows
            after_step(StepReport(epoch, step + 1, steps, loss, rows, lambda: optimizer_tensors(optimizer, trained)))
    optimizer.zero_grad(set_to_none=True)
    context.model.adapter.train_mode(False)


def take_step(
    context: Context,
    rules: Sequence[Rule],
    processes: Processes,
    optimizer: torch.optim.Optimizer,
    selections: Mapping[str, Selection],
    place: tuple[int, int],
    *,
    labelled: bool = True,
) -> float:
    """One step on the selected rows, shared among the processes; gives the loss of this process's share.

    Where nobody knows the right answers (`labelled` is false), the loss is what the rules make of the rows alone.
    """
    seed = derived_seed(context.task.settings.seed, "step", context.task.index, place[1], processes.rank)
    seed_global(
        seed, context.model.backbone.device
    )  # dropout of the adapter, the only draw from torch's global generator
    batch = local_batch(context, processes, selections, place)
    for rule in rules:
        rule.before_step(context, batch)
    whole = partial(total_loss, context, rules, processes, selections, batch)
    loss = whole() if labelled else unlabelled_loss(context, rules, batch)
    value = loss.item()  # waits for the device, so the check below must not wait again
    if not math.isfinite(value):
        raise NumericError(not_finite(context, selections[TASK].rows, place, value))
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    trained = context.model.trained()
    share_gradients(list(trained.values()), processes)
    allow_gradients(context, rules, trained)
    if context.task.settings.clip is not None:
        torch.nn.utils.clip_grad_norm_(trained.values(), context.task.settings.clip)
    constrained_step(context, rules, optimizer, trained, resting_rows(context, selections))
    context.model.adapter.after_step(context)
    for rule in rules:
        rule.after_step(context)
    return value


def allow_gradients(context: Context, rules: Sequence[Rule], trained: Mapping[str, Parameter]) -> None:
    """Give the optimizer the gradients that every rule lets through."""
    choosing = [rule for rule in rules if type(rule).gradients is not Rule.gradients]
    if not choosing:
        return
    gradients: Tensors = {name: p.grad for name, p in trained.items() if p.grad is not None}
    for rule in choosing:
        gradients = rule.gradients(context, gradients)
    for name, parameter in trained.items():
        parameter.grad = gradients.get(name)


def constrained_step(
    context: Context,
    rules: Sequence[Rule],
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, Parameter],
    resting: Mapping[Parameter, Tensor],
) -> None:
    """The optimizer's step, changed by every rule that masks or projects it: momentum and decay do not escape them.

    Rows of the head that are `resting` keep every bit in it.
    """
    changing = [rule for rule in rules if type(rule).updates is not Rule.updates]
    before = {name: parameter.detach().clone() for name, parameter in trained.items()} if changing else {}
    with rested(optimizer, resting):
        optimizer.step()
    if not changing:
        return
    made = {name: parameter.detach() - before[name] for name, parameter in trained.items()}
    updates: Tensors = made
    for rule in changing:
        updates = rule.updates(context, updates)
    with torch.no_grad():
        for name, parameter in trained.items():
            if updates[name] is not made[name]:
                parameter.copy_(applied_update(before[name], parameter, made[name], updates[name]))


def applied_update(before: Tensor, after: Tensor, made: Tensor, update: Tensor) -> Tensor:
    """Where entries go by `update`: to the bit where the optimizer put them if it is the move `made`, else before + move.

    Adding before + (after - before) would not give after to the last bit. An entry whose move is -0.0 keeps every bit.

    >>> before, after = torch.tensor([1.0, 1.0]), torch.tensor([1.1, 1.1])
    >>> found = applied_update(before, after, after - before, (after - before) * torch.tensor([1.0, 0.0]))
    >>> found.tolist() == [after[0].item(), 1.0]
    True
    """
    return torch.where((update == made) & (update != 0), after, before + update)


def share_gradients(parameters: Sequence[Parameter], processes: Processes) -> None:
    """Sum the gradients of all processes; a parameter that this process's rows did not reach counts as zero."""
    if processes.count == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    processes.sum_([parameter.grad for parameter in parameters if parameter.grad is not None])


def total_loss(
    context: Context,
    rules: Sequence[Rule],
    processes: Processes,
    selections: Mapping[str, Selection],
    batch: Batch | None,
) -> Tensor:
    """The loss of this process's share of the rows, so that the sum over the processes is the step's loss."""
    terms: list[Tensor] = []
    if batch is not None:
        outputs = context.model.forward(batch)
        terms.append(objective_loss(context, batch, outputs, selections))
        terms += [term for rule in rules if (term := rule.loss(context, batch, outputs)) is not None]
        if outputs.penalty is not None:
            terms.append(outputs.penalty)
        if context.model.router is not None and (term := context.model.router.loss(context, batch)) is not None:
            terms.append(term)
    penalties = [term / processes.count for rule in rules if (term := rule.penalty(context)) is not None]
    zero = sum(parameter.sum() * 0.0 for parameter in context.model.trained().values()) if not terms else 0.0
    return torch.as_tensor(sum(terms) + sum(penalties) + zero)


def unlabelled_loss(context: Context, rules: Sequence[Rule], batch: Batch | None) -> Tensor:
    """What the rules make of rows whose right answers nobody knows."""
    zero = torch.as_tensor(sum(parameter.sum() * 0.0 for parameter in context.model.trained().values()))
    if batch is None:
        return zero
    outputs = context.model.forward(batch)
    terms = [term for rule in rules if (term := rule.unlabelled_loss(context, batch, outputs)) is not None]
    return torch.as_tensor(sum(terms) + zero)


def local_batch(
    context: Context, processes: Processes, selections: Mapping[str, Selection], place: tuple[int, int]
) -> Batch | None:
    """This process's rows of every segment, or None where it has none."""
    parts, segments, counts, start = [], {}, {}, 0
    if processes.count > 1 and not context.task.settings.fresh_views:
        # What is kept is computed by all processes together, also by those that have no row of this step.
        context.passes.prepare(
            [selection.dataset for selection in selections.values()], context.task.settings.view_of(place[0])
        )
    for name, selection in selections.items():
        rows: Rows = selection.rows[processes.rank :: processes.count]
        units = selection.dataset.prepared.units
        counts[name] = units(selection.rows)
        segments[name] = slice(start, start + units(rows))
        start = segments[name].stop
        if len(rows):
            parts.append((selection.dataset, rows))
    if not parts:
        return None
    augment = None
    if context.task.settings.fresh_views and context.model.backbone.augmentable:
        augment = torch_generator(context.task.settings.seed, "augment", context.task.index, *place, processes.rank)
    view = context.task.settings.view_of(place[0])
    packed = context.task.settings.packing
    return context.passes.batch(parts, segments=segments, counts=counts, augment=augment, view=view, packed=packed)


def objective_loss(context: Context, batch: Batch, outputs: Outputs, selections: Mapping[str, Selection]) -> Tensor:
    """The objective's losses: a mean over the task's and joined rows, and weighted terms."""
    rows = context.model.objective.losses(context.model, batch, outputs.logits)
    joined = [name for name, selection in selections.items() if selection.weight is None]
    count = sum(batch.counts[name] for name in joined)
    loss = torch.stack([rows[batch.segments[name]].sum() for name in joined]).sum() / count
    for name, selection in selections.items():
        if selection.weight:
            loss = loss + selection.weight * batch.mean(rows[batch.segments[name]], name)
    return loss


def not_finite(context: Context, rows: Rows, place: tuple[int, int], value: float) -> str:
    """The sentence for a loss that is infinite or not a number."""
    ids = context.task.data.examples.ids[rows[:8]].tolist()
    return (
        f"the loss is {value} in task {context.task.index + 1} ({context.task.name}), epoch {place[0] + 1}, "
        f"step {place[1] + 1} of the task, on the batch with examples {ids}{' …' if len(rows) > 8 else ''}; the step was "
        "not taken. Lower train.lr or set train.clip, and look at these examples"
    )
