"""Refresh learning: unlearn the batch a little before every step that learns it (arXiv 2403.13249)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.data import TASK, Batch, Selection
from contune.contract.parts import Rule
from contune.contract.randomness import torch_generator
from contune.contract.state import State, on_device
from contune.rule.anchor.anchor import mean_over_examples

Tensors = Mapping[str, Tensor]
FISHER_SHARE = 1e-3  # released code: the inverse of 1 + 0.001 F


def unlearned(value: Tensor, gradient: Tensor, fisher: Tensor, noise: Tensor, delta: float) -> Tensor:
    """theta + delta (||theta|| g / ||g|| + noise) / (1 + 0.001 F): up the loss by `delta` of the tensor's own norm.

    >>> unlearned(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), torch.zeros(2), torch.zeros(2), 0.1).tolist()
    [3.0, 4.5]
    """
    up = gradient * (value.norm() / (gradient.norm() + 1e-20))
    moved: Tensor = value + delta * (up + noise) / (1 + FISHER_SHARE * fisher)
    return moved


def grown_to(earlier: Tensor | None, like: Tensor) -> Tensor:
    """`earlier` in the corner of a tensor of zeros shaped like another.

    >>> grown_to(torch.tensor([5.0]), torch.zeros(2)).tolist()
    [5.0, 0.0]
    """
    whole = torch.zeros_like(like)
    if earlier is not None:
        whole[tuple(slice(size) for size in earlier.shape)] = earlier.to(whole.device)
    return whole


@final
class Refresh(Rule):
    """Before every step moves each trained tensor a little up the loss of the task's own rows (arXiv 2403.13249).

    Move: `delta` of the tensor's norm along the gradient of cross-entropy, with noise added before, divided by 1 +
    0.001 F. F is the mean of p(y|x) (d log p / d theta)^2 over `examples` at the end of a task, plus `decay` times the
    old F. With delta 1e-5 and F of usual size this is a tiny, almost unscaled move. The head is moved as well. Several
    processes make the same move: gradients are summed, and noise is drawn by the step.

    Memory: F, one value per trained entry.
    Compute: one more forward and backward pass a step, and one pass per example of F.
    Differs:
    - The released code moves up the loss with its model in training mode, so through dropout and batch statistics of its
      own; here one forward pass is made as the step's.
    - F is measured on `examples` of the task's examples, in the released code on all of them.
    """

    name: ClassVar[str] = "refresh"
    idle: ClassVar[Mapping[str, object]] = {"delta": 0.0}

    def __init__(
        self,
        *,
        delta: Annotated[float, "length of the move, as a share of the tensor's norm", "released code"] = 1e-5,
        noise: Annotated[float, "size of the normal noise in the move's direction", "released code"] = 1e-3,
        decay: Annotated[float, "share of old Fisher information kept when a task ends", "released code"] = 1e-5,
        examples: Annotated[int, "examples of a task that the Fisher information is measured on"] = 200,
    ) -> None:
        self.delta, self.noise, self.decay, self.examples = delta, noise, decay, examples
        self._fisher: dict[str, Tensor] = {}
        self._step = 0

    def select(self, context: Context, epoch: int, step: int) -> Mapping[str, Selection]:
        self._step = step
        return {}

    def before_step(self, context: Context, batch: Batch | None) -> None:
        if not self.delta:
            return
        trained = context.model.trained()
        gradients = self._gradients(context, batch)
        generator = torch_generator(context.task.settings.seed, "refresh", context.task.index, self._step)
        moved = {}
        for name, value in trained.items():
            noise = self.noise * torch.randn(value.shape, generator=generator).to(value.device)
            fisher = grown_to(self._fisher.get(name), value.detach())
            moved[name] = unlearned(value.detach(), gradients[name], fisher, noise, self.delta)
        context.model.write(moved)

    def _gradients(self, context: Context, batch: Batch | None) -> Tensors:
        """Gradient of the mean cross-entropy of the task's own rows, summed over processes."""
        trained = context.model.trained()
        gradients = {name: torch.zeros_like(value) for name, value in trained.items()}
        if batch is not None and batch.segments[TASK].start < batch.segments[TASK].stop:
            place = batch.segments[TASK]
            logits = context.model.forward(batch).logits
            loss = batch.mean(context.model.objective.losses(context.model, batch, logits)[place])
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            gradients |= {n: g for n, g in zip(trained, found, strict=True) if g is not None}
        context.passes.processes.sum_(list(gradients.values()))
        return gradients

    def end_task(self, context: Context) -> None:
        if not self.delta:
            return

        def weighted(batch: Batch, logits: Tensor) -> Tensor:
            log_p = context.model.objective.log_likelihood(context.model, batch, logits, None)
            return (log_p / 2).exp().detach() * log_p  # its gradient squared is p (d log p)^2

        new = mean_over_examples(context, self.examples, weighted, 2)
        self._fisher = {n: t + self.decay * grown_to(self._fisher.get(n), t) for n, t in new.items()}

    def state(self) -> State:
        return State(self._fisher)

    def load_state(self, state: State, context: Context) -> None:
        self._fisher = on_device(state.tensors, context.model.backbone.device)
