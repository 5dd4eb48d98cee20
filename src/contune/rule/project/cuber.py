"""Backward transfer: old tasks that the new one agrees with may be changed, the others not (CUBER, arXiv 2211.00789)."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from contune.backbone.linear import is_transposed
from contune.contract.capability import Lifetime, LinearWeights, Need
from contune.contract.context import Context
from contune.contract.data import Rows
from contune.contract.parts import Rule, Tensors
from contune.contract.passes import input_moments
from contune.contract.randomness import numpy_generator
from contune.contract.state import InputMemory, State, on_device
from contune.errors import ConfigError
from contune.numerics.subspaces import Subspace, closing_threshold, project_out
from contune.rule.linear import linear_modules, require_watched, still
from contune.rule.project.gradient_projection import check_shares

Regime = Literal["apart", "agrees", "differs"]
DEPENDENT = 1e-12  # squared sine below which a direction of one float32 basis lies in the span of others


def regime(gradient: Tensor, old: Tensor, space: Subspace, *, overlap: float, agreement: float) -> Regime:
    """How a new task's gradient (d_out, d) meets an old task with gradient `old` and inputs in `space`.

    `apart`: at most the share `overlap` of its norm lies in the space. Otherwise `agrees`, where the cosine of both
    gradients is positive and at least `agreement`, or `differs` (CUBER, definitions 1 and 2).

    >>> space = Subspace(torch.tensor([[1.0], [0.0]]), "remove")
    >>> old, new = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.1]], [[-1.0, 0.1]], [[0.1, 1.0]]])
    >>> [regime(gradient, old, space, overlap=0.5, agreement=0.0) for gradient in new]
    ['agrees', 'differs', 'apart']
    """
    whole = gradient.double().norm()
    inside = (gradient - project_out(gradient, space)).double().norm()
    if inside <= overlap * whole:
        return "apart"
    product = (gradient.double() * old.double()).sum()
    return "agrees" if product > 0 and product >= agreement * whole * old.double().norm() else "differs"


def joined_spaces(spaces: Sequence[Subspace]) -> Subspace:
    """The span of several subspaces of R^d, kept by its own basis up to d / 2 dimensions, then by that of the rest.

    >>> axes = torch.eye(3)
    >>> joined_spaces([Subspace(axes[:, :1], "remove"), Subspace(axes[:, 1:2], "remove")]).size()
    2
    """
    if len(spaces) == 1:
        return spaces[0]
    width = len(spaces[0].columns)
    total = torch.zeros(width, width, dtype=torch.float64, device=spaces[0].columns.device)
    for space in spaces:
        columns = torch.linalg.qr(space.columns.double())[0]
        inside = columns @ columns.T
        total += inside if space.kind == "remove" else torch.eye(width, device=total.device) - inside
    values, vectors = torch.linalg.eigh(total)
    outside = int((values <= DEPENDENT).sum())
    if 2 * (width - outside) <= width:
        return Subspace(vectors[:, outside:].float(), "remove")
    return Subspace(vectors[:, :outside].float(), "retain")


def mean_gradients(context: Context, names: Sequence[str], rows: Rows) -> dict[str, Tensor]:
    """Gradient of the mean classification loss over these rows of the task, in the deterministic view."""
    trained = context.model.trained()
    sums = {name: torch.zeros_like(trained[name]) for name in names}
    size = context.passes.batch_size
    for start in range(0, len(rows), size):
        batch = context.passes.batch([(context.task.data, rows[start : start + size])])
        logits = context.model.forward(batch).logits
        loss = context.model.objective.losses(context.model, batch, logits).sum() / len(rows)
        found = torch.autograd.grad(loss, [trained[name] for name in names], allow_unused=True)
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                sums[name] += gradient
    return sums


@final
class Cuber(Rule):
    """Projects steps off the inputs of old tasks as GPM does, but lets a weight change for a task that the new one helps.

    CUBER (arXiv 2211.00789). For every linear weight and old task j the inputs' subspace U_j and the gradient g_j of
    its own loss at its end are kept. When a task begins, its gradient g decides, once and for each weight alone, how it
    meets j (sections 3 and 4): `apart`, |g U_j| <= overlap |g|; else `agrees`, cos(g, g_j) > 0 and >= agreement; else
    `differs`. Moves are projected off the joined U_j of all tasks that do not agree: where a task is apart that costs
    next to nothing. Tasks that agree are left out of the projection, and strength <g_j, W - W_j>, the first-order
    change of their loss, is added to the loss. Biases, norms and embeddings rest after the first task, as with
    `gradient-projection`.

    g comes from many examples in a seeded order, as one batch is noisy; the choice is never revised. g_j is that of all
    the task's examples and is not refreshed, so the term is exact near W_j only; it has no lower bound: keep `strength`
    small where training is long.

    Memory: the weights once more for every task, and at most d_in^2 / 2 values per task and linear layer; layers that
    read one tensor share these.
    Compute: two passes over each task, one with gradients, and d_in^3 per layer when a task begins.
    Defaults: ours; the paper's values for the thresholds and `strength` are not known to us.
    Differs:
    - The paper also trains scale matrices that reuse old weights for the task at hand (from TRGP); they belong to one
      task, which somebody would have to name at prediction, so there are none here.
    - Moves are projected and not gradients.
    """

    name: ClassVar[str] = "cuber"
    needs: ClassVar[tuple[Need, ...]] = (
        LinearWeights,
        Lifetime.LASTING,
    )

    def __init__(
        self,
        *,
        threshold: Annotated[float, "share of old inputs' energy that steps keep off, 0 to below 1"] = 0.97,
        growth: Annotated[float, "share of its way to 1 that each task raises the threshold, 0 to below 1"] = 0.1,
        overlap: Annotated[float, "share of a gradient in old inputs up to which tasks are apart"] = 0.5,
        agreement: Annotated[float, "least cosine of two tasks' gradients to count as agreeing, 0 to 1"] = 0.0,
        strength: Annotated[float, "weight of the first-order change of agreeing tasks' losses, from 0"] = 1.0,
        examples: Annotated[int, "examples of a new task that its first gradient is measured on, from 1"] = 512,
    ) -> None:
        check_shares(threshold=threshold, growth=growth)
        for option, value in (("overlap", overlap), ("agreement", agreement)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{option} is {value}; give a share from 0 to 1")
        if examples < 1 or strength < 0:
            raise ConfigError(f"examples is {examples} and strength {strength}; give at least 1 and at least 0")
        self.threshold, self.growth = threshold, growth
        self.overlap, self.agreement = overlap, agreement
        self.strength, self.examples = strength, examples
        self._inputs: list[InputMemory] = []
        self._gradients: list[dict[str, Tensor]] = []
        self._starts: list[dict[str, float]] = []
        self._regimes: list[dict[str, Regime]] = []
        self._transposed: list[str] = []
        self._protected: dict[str, Subspace] = {}

    def begin_task(self, context: Context) -> None:
        require_watched(context, self.name)
        known = {name for gradients in self._gradients for name in gradients}
        names = sorted(known & set(context.model.trained()))
        if names:
            order = numpy_generator(context.task.settings.seed, self.name, context.task.index)
            rows = order.permutation(len(context.task.data))[: self.examples]
            found = mean_gradients(context, names, rows)
            self._regimes = [self._meet(found, task) for task in range(len(self._inputs))]
            self._protect()

    def _meet(self, gradients: Tensors, task: int) -> dict[str, Regime]:
        """The regime of every weight towards one old task."""
        found = {}
        for name, old in self._gradients[task].items():
            space = self._inputs[task].space(name)
            if space is not None and name in gradients:
                new, earlier = self._rows(name, gradients[name]), self._rows(name, old)
                found[name] = regime(new, earlier, space, overlap=self.overlap, agreement=self.agreement)
        return found

    def _rows(self, name: str, tensor: Tensor) -> Tensor:
        """A weight's tensor as rows (d_out, d_in)."""
        return tensor.T if name in self._transposed else tensor

    def _protect(self) -> None:
        """Join the subspaces that each weight must leave alone."""
        joint: dict[tuple[str, tuple[int, ...]], Subspace] = {}
        self._protected = {}
        for name in sorted({name for regimes in self._regimes for name in regimes}):
            kept = tuple(task for task, found in enumerate(self._regimes) if found.get(name, "agrees") != "agrees")
            spaces = [space for task in kept if (space := self._inputs[task].space(name)) is not None]
            if spaces:
                place = (self._inputs[kept[0]].leaders.get(name, name), kept)
                if place not in joint:
                    joint[place] = joined_spaces(spaces)
                self._protected[name] = joint[place]

    def penalty(self, context: Context) -> Tensor | None:
        trained, terms = context.model.trained(), []
        for task, regimes in enumerate(self._regimes):
            for name, found in sorted(regimes.items()):
                if found == "agrees" and name in trained:
                    change = (self._gradients[task][name] * trained[name]).sum() - self._starts[task][name]
                    terms.append(change)
        return self.strength * torch.stack(terms).sum() if terms and self.strength else None

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        if not self._inputs:
            return updates
        allowed = dict(still(updates, {name for gradients in self._gradients for name in gradients}))
        for name, space in self._protected.items():
            if name in allowed:
                allowed[name] = self._rows(name, project_out(self._rows(name, allowed[name]), space))
        return allowed

    def end_task(self, context: Context) -> None:
        modules = linear_modules(context)
        self._regimes, self._protected = [], {}
        if not modules:
            return
        threshold = closing_threshold(self.threshold, self.growth, len(self._inputs))
        memory = InputMemory()
        memory.grow(input_moments(context, modules), threshold)
        gradients = mean_gradients(context, sorted(memory.leaders), np.arange(len(context.task.data)))
        trained = context.model.trained()
        self._inputs.append(memory)
        self._gradients.append(gradients)
        self._starts.append({name: float((g * trained[name].detach()).sum()) for name, g in gradients.items()})
        self._transposed = [name for name, module in modules.items() if is_transposed(module)]

    def state(self) -> State:
        inner: dict[str, State] = {}
        for task, memory in enumerate(self._inputs):
            inner[f"inputs{task}"] = memory.state()
            inner[f"gradients{task}"] = State(self._gradients[task], {"starts": dict(self._starts[task])})
        regimes = [dict(found) for found in self._regimes]
        own = {"tasks": len(self._inputs), "regimes": regimes, "transposed": list(self._transposed)}
        return State.nested({**inner, "own": State({}, own)})

    def load_state(self, state: State, context: Context) -> None:
        own, device = state.inner("own").values, context.model.backbone.device
        self._inputs, self._gradients, self._starts = [], [], []
        for task in range(int(own["tasks"])):
            memory, kept = InputMemory(), state.inner(f"gradients{task}")
            memory.load(state.inner(f"inputs{task}"), device)
            self._inputs.append(memory)
            self._gradients.append(on_device(kept.tensors, device))
            self._starts.append(dict(kept.values["starts"]))
        self._regimes, self._transposed = [dict(found) for found in own["regimes"]], list(own["transposed"])
        self._protect()
