"""Classifier alignment: the head is trained once more on samples of all classes (SLCA, arXiv 2303.05118, section 3.3)."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from contune.contract.capability import MergedLater, find
from contune.contract.context import Context
from contune.contract.parts import Phase, Rule, Trait
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.errors import CombinationError
from contune.rule.align.statistics import Form, Gaussians, Sampler, joined_gaussians, measured_task

MOMENTUM = 0.9  # of both stages in the released code
SCALE_WIDTH = 0.01  # released code of SLCA++: r is uniform in sample_scale +- this


def normalised_logits(logits: Tensor, class_tasks: Tensor, temperature: float) -> Tensor:
    """Logits (n, C) over the mean of their norms within each task, over the temperature (SLCA, equation 6).

    `class_tasks` (tasks, C) says which columns each task has. Equal for a * logits and any a > 0.

    >>> normalised_logits(torch.tensor([[3.0, 4.0]]), torch.tensor([[True, True]]), 0.1).tolist()
    [[6.0, 8.0]]
    """
    squares = logits.square() @ class_tasks.to(logits).T
    norms = squares.clamp(min=1e-14).sqrt()  # the released code adds 1e-7 to each norm
    return logits / norms.mean(dim=1, keepdim=True) / temperature


def drift_factors(
    tasks: Tensor, now: int, shrink: float, sample_scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What means (n,) of these tasks and draws (n,) from them are multiplied by, in task `now`; 1 for its own classes.

    SLCA: means by shrink + (1 - shrink) (t_c + 1) / (t + 1). SLCA++: draws by 1 / (1 + r (t - t_c)), r uniform.

    >>> drift_factors(torch.tensor([0, 1]), 1, 0.9, 0.0, torch.Generator())[0].tolist()
    [0.949999988079071, 1.0]
    """
    means = shrink + (1 - shrink) * (tasks + 1) / (now + 1)
    if not sample_scale:
        return means, torch.ones(len(tasks))
    r = sample_scale + SCALE_WIDTH * (2 * torch.rand(len(tasks), generator=generator) - 1)
    return means, 1 / (1 + r * (now - tasks))


def samples_per_class(labels: Tensor, samples: int) -> list[int]:
    """How many draws each Gaussian gives, so that every class has `samples`, in equal parts of its Gaussians.

    >>> samples_per_class(torch.tensor([0, 1, 0]), 5)
    [3, 5, 2]
    """
    given: list[int] = []
    for place, label in enumerate(labels.tolist()):
        number, of = int((labels[:place] == label).sum()), int((labels == label).sum())
        given.append(samples // of + (number < samples % of))
    return given


def restored(current: Tensor, earlier: Tensor) -> Tensor:
    """A copy of `current` with `earlier` back in the corner it had before the tensor grew.

    >>> restored(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([1.0])).tolist()
    [1.0, 6.0, 7.0]
    """
    whole = current.detach().clone()
    whole[tuple(slice(size) for size in earlier.shape)] = earlier.to(whole.device)
    return whole


@final
class Alignment(Rule):
    """At the end of every task after the first, trains the head alone on Gaussian samples of all seen classes (SLCA).

    arXiv 2303.05118, section 3.3. The head as it was before is kept and put back when the next task begins, before
    gradient steps, so that other rules see it too. The statistics of a class are measured at the end
    of its task, in the model's deterministic view, and never refreshed. An epoch is fresh samples of every class. With
    the loss over the task's own classes, old head rows rest in gradient steps as the frozen old heads of the paper do.

    Memory: per class d^2 values (`form` full), d (diagonal), rank x d (low-rank) or nothing beyond the mean (shared),
    the head once more, and while it is trained the square roots of full covariances.
    Compute: epochs x samples x classes rows through the head, one more pass over each task.
    Differs:
    - A class that comes back is sampled in equal parts from one Gaussian per time, and tasks may be of any size.
    """

    name: ClassVar[str] = "alignment"
    phase: ClassVar[Phase] = Phase.ALIGNS
    needs_traits: ClassVar[frozenset[Trait]] = frozenset({Trait.EXAMPLE_ROWS, Trait.COMPETING})
    idle: ClassVar[Mapping[str, object]] = {"epochs": 0}

    def __init__(
        self,
        *,
        epochs: Annotated[int, "passes of the head over fresh samples of all classes", "released code"] = 5,
        samples: Annotated[int, "features drawn for every class in a pass", "released code"] = 256,
        batch_size: Annotated[int, "samples in a step", "released code"] = 256,
        lr: Annotated[float, "learning rate of its SGD, which falls as a cosine", "released code"] = 0.01,
        weight_decay: Annotated[float, "weight decay of the alignment", "released code"] = 5e-4,
        temperature: Annotated[float | None, "divides normed scores; null: scores as they are", "released code"] = 0.1,
        shrink: Annotated[float, "least share of an old mean's length; 1: all of it", "released code"] = 0.9,
        sample_scale: Annotated[float, "old samples shrink by 1 / (1 + this x tasks since); SLCA++ has 0.02"] = 0.0,
        form: Annotated[Form, "what is kept of covariances; shared: one for all classes", "SLCA"] = "full",
        rank: Annotated[int, "directions kept of each covariance in form low-rank, from 1"] = 8,
    ) -> None:
        self.epochs, self.samples, self.batch_size = epochs, samples, batch_size
        self.lr, self.weight_decay, self.temperature = lr, weight_decay, temperature
        self.shrink, self.sample_scale = shrink, sample_scale
        self.form, self.rank = form, rank
        self._gaussians: Gaussians | None = None
        self._backup: dict[str, Tensor] = {}

    def begin_task(self, context: Context) -> None:
        head = head_tensors(context)
        if self.epochs and not head:
            raise CombinationError(
                f"rule 'alignment' trains the head on samples, but head {context.model.head.name!r} has nothing that is "
                "trained; take head linear or cosine"
            )
        context.model.write({name: restored(head[name], earlier) for name, earlier in self._backup.items()})

    def end_task(self, context: Context) -> None:
        if not self.epochs:
            return
        self._backup = {name: value.detach().clone() for name, value in head_tensors(context).items()}
        adapter = find(context.model.adapter, MergedLater)
        with nullcontext() if adapter is None else adapter.merged():
            self._gaussians = joined_gaussians(self._gaussians, measured_task(context, self.form, self.rank))
        if context.task.index > 0:
            self._align(context, self._gaussians)

    def _align(self, context: Context, gaussians: Gaussians) -> None:
        tensors = list(head_tensors(context).values())
        optimizer = torch.optim.SGD(tensors, lr=self.lr, momentum=MOMENTUM, weight_decay=self.weight_decay)
        sampler = Sampler(gaussians)
        for epoch in range(self.epochs):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
            generator = torch_generator(context.task.settings.seed, "alignment", context.task.index, epoch)
            features, labels, tasks = self._samples(sampler, context.task.index, generator)
            order = torch.randperm(len(features), generator=generator)
            for rows in torch.split(order, self.batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss = self._loss(context, features[rows], labels[rows], tasks[rows])
                torch.autograd.backward(loss, inputs=tensors)
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _samples(self, sampler: Sampler, now: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Samples (n, d) of every class with their labels and tasks (n,)."""
        gaussians = sampler.gaussians
        pieces, places = [], []
        for place, count in enumerate(samples_per_class(gaussians.labels, self.samples)):
            tasks = gaussians.tasks[place].expand(count)
            means, scales = drift_factors(tasks, now, self.shrink, self.sample_scale, generator)
            factor = float(means[0]) if count else 1.0
            drawn = sampler.draw(place, count, generator, mean_factor=factor)
            pieces.append(drawn * scales.unsqueeze(1))
            places.append(torch.full((count,), place))
        at = torch.cat(places)
        return torch.cat(pieces), gaussians.labels[at], gaussians.tasks[at]

    def _loss(self, context: Context, features: Tensor, labels: Tensor, tasks: Tensor) -> Tensor:
        device = context.model.backbone.device
        features, labels = features.to(device), labels.to(device)
        if (modules := context.model.modules) is not None:
            routes = modules.routes(tasks).to(device)
            logits = context.model.head.routed_logits(features, routes, training=True)
        else:
            logits = context.model.head.training_logits(features)
        if self.temperature is not None:
            logits = normalised_logits(logits, context.model.class_tasks, self.temperature)
        return functional.cross_entropy(logits, labels)

    def state(self) -> State:
        if self._gaussians is None:
            return State()
        return State.nested({"gaussians": self._gaussians.state(), "backup": State(self._backup)})

    def load_state(self, state: State, context: Context) -> None:
        del context
        if state.tensors:
            self._gaussians = Gaussians.from_state(state.inner("gaussians"))
            self._backup = dict(state.inner("backup").tensors)


def head_tensors(context: Context) -> dict[str, Tensor]:
    """What is trained of the head, by its name in the context."""
    return {name: value for name, value in context.model.trained().items() if name.startswith("head.")}
