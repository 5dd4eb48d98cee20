"""Whether every trained entry can act: for each slice of each trained tensor there are values that change the output."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from contune.checks.run import CheckRun, MakeMethod, copied
from contune.checks.setting import require
from contune.contract.context import Context
from contune.contract.data import Batch, Rows
from contune.contract.model import Model
from contune.engine.learner import Learner

DRAWS = 16  # values of the trained tensors tried: what no input chooses at one may be chosen at another
ROWS = 8  # examples that are asked
TABLE = 64  # rows beyond which a tensor is a table that inputs look things up in
FAR = 30.0  # how far a slice is moved, in the largest entry of its tensor, where no gradient reaches it


def check_every_entry_acts(make: MakeMethod, trial: CheckRun) -> None:
    """Every slice of every trained tensor can change the scores or the features, or what its router learns by."""
    learner, context = in_the_middle(make, trial)
    trained = own_tensors(learner, context)
    if not trained:
        return
    batch = context.passes.batch([(context.task.data, few_rows(context.task.data.labels))])
    kept = {name: value.detach().clone() for name, value in context.model.trained().items()}
    reached = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in trained.items()}
    for draw in range(DRAWS):
        context.model.write(moved(kept, draw))
        for name, gradient in gradients(context, batch, trained).items():
            reached[name] |= gradient != 0
        for name, dim, place in unreached(reached):
            if changes_outputs(context, batch, name, dim, place):
                reached[name].select(dim, place).fill_(True)
        if next(unreached(reached), None) is None:
            break
    context.model.write(kept)
    still = [f"{name}[{', '.join([':'] * dim + [str(place)])}]" for name, dim, place in unreached(reached)]
    require(not still, f"{len(still)} trained slices change nothing whatever their values, the first is {still[:1]}")


def few_rows(labels: Rows) -> Rows:
    """The places of about `ROWS` examples, of every label some."""
    order: Rows = labels.argsort(kind="stable")
    return order[:: max(1, len(labels) // ROWS)]


def in_the_middle(make: MakeMethod, trial: CheckRun) -> tuple[Learner, Context]:
    """A learner as it was in the middle of the second task, or at the beginning of it."""
    place = trial.checkpoint
    assert place is not None
    learner = trial.setting.learner(make())
    experience = trial.experiences[place.experience]
    context = learner.load_state(copied(place.state), experience if place.step else ())
    if not place.step or context is None:
        context = learner.begin(experience)
    return learner, context


def own_tensors(learner: Learner, context: Context) -> Mapping[str, Tensor]:
    """What is trained and is no weight of the base, of which some wait for inputs that are not here."""
    base = {id(parameter) for parameter in learner.backbone.base_parameters().values()}
    return {name: value for name, value in context.model.trained().items() if id(value) not in base}


def moved(values: Mapping[str, Tensor], draw: int) -> dict[str, Tensor]:
    """The values with noise of their own size added; the same for the same draw."""
    generator = torch.Generator().manual_seed(draw)
    found = {}
    for name, value in values.items():
        size = max(float(value.abs().max()) if value.numel() else 0.0, 0.1)
        found[name] = value + size * torch.randn(value.shape, generator=generator)
    return found


def gradients(context: Context, batch: Batch, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a random sum of all outputs, and of what the router learns by."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(())
    for output in outputs_of(context.model, batch):
        total = total + (output * torch.randn(output.shape, generator=generator)).sum()
    router = context.model.router
    term = None if router is None else router.loss(context, batch)
    total = total if term is None else total + term
    if not total.requires_grad:
        return {}
    found = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    return {name: value for name, value in zip(trained, found, strict=True) if value is not None}


def outputs_of(model: Model, batch: Batch) -> list[Tensor]:
    """Features and the finite scores of a batch."""
    outputs = model.forward(batch)
    return [outputs.features, outputs.logits.masked_fill(~outputs.logits.isfinite(), 0.0)]


def unreached(reached: Mapping[str, Tensor]) -> Iterator[tuple[str, int, int]]:
    """Every slice of which no entry has been seen to act: its tensor's name, dimension and place.

    The rows of a long table of which some act are left out: inputs look them up, and these inputs look up a few.
    """
    for name, seen in reached.items():
        for dim in range(seen.dim()):
            if dim == 0 and seen.dim() > 1 and len(seen) > TABLE and bool(seen.any()):
                continue
            others = [other for other in range(seen.dim()) if other != dim]
            found = seen.any(dim=others) if others else seen
            yield from ((name, dim, place) for place in torch.nonzero(~found).flatten().tolist())


def changes_outputs(context: Context, batch: Batch, name: str, dim: int, place: int) -> bool:
    """Whether moving one slice far away changes an output."""
    value = context.model.trained()[name].detach().clone()
    part = value.select(dim, place)
    size = FAR * max(float(value.abs().max()), 1.0)
    step = size * torch.randn(part.shape, generator=torch.Generator().manual_seed(place))
    found = False
    with torch.no_grad():
        before = outputs_of(context.model, batch)
        for sign in (1.0, -1.0):  # a key may have to come nearer
            far = value.clone()
            far.select(dim, place).add_(sign * step)
            context.model.write({name: far})
            after = outputs_of(context.model, batch)
            found |= any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))
        context.model.write({name: value})
    return found
