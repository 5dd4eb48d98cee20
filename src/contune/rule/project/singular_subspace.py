"""Singular subspaces: steps leave alone what the strongest singular vectors of each weight span (arXiv 2504.07097)."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.backbone.reader.inputs import ModelInputs
from contune.contract.capability import BaseMatrices, Need, require
from contune.contract.context import Context
from contune.contract.parts import Adapter, Head, Rule, Tensors
from contune.contract.randomness import numpy_generator
from contune.contract.state import State
from contune.errors import ConfigError
from contune.numerics.subspaces import Subspace, complement, project_out, token_rows
from contune.rule.linear import slices, still, trained_matrices

SLACK = 1e-9  # a ratio such as 0.29 of 100 singular values is 28.999... in floating point


def input_similarity(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Cosine (n,) of what goes into a layer (n, d_in) and what comes out (n, d_out), over the leading min(d_in, d_out).

    >>> input_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0, 9.0]])).item()
    1.0
    """
    width = min(inputs.shape[1], outputs.shape[1])
    return functional.cosine_similarity(inputs[:, :width], outputs[:, :width], dim=1)


def retained_ratios(similarities: Mapping[str, float], minimum: float, target: float) -> dict[str, float]:
    """minimum + I (target - minimum) for every layer, I the size of its similarity over the mean size of all layers'.

    >>> retained_ratios({"query": 0.25, "value": -0.75}, 0.25, 0.75)
    {'query': 0.5, 'value': 1.0}
    """
    mean = sum(abs(value) for value in similarities.values()) / max(len(similarities), 1)
    shares = {name: abs(value) / mean if mean else 1.0 for name, value in similarities.items()}
    return {name: minimum + share * (target - minimum) for name, share in shares.items()}


def retained_rank(ratio: float, full: int) -> int:
    """The part `ratio` of `full` singular values, rounded down; at least one is left to learn with.

    >>> retained_rank(0.29, 100), retained_rank(1.2, 8)
    (29, 7)
    """
    return max(0, min(int(ratio * full + SLACK), full - 1))


def smaller_basis(columns: Tensor) -> Subspace:
    """The span of orthonormal columns (d, k), kept by them or by a basis of all that is orthogonal to them.

    >>> smaller_basis(torch.eye(3)[:, :2]).kind
    'retain'
    """
    width, count = columns.shape
    if 2 * count <= width:
        return Subspace(columns.float().contiguous(), "remove")
    return Subspace(complement(columns.double()).float().contiguous(), "retain")


@final
@dataclass(frozen=True, eq=False)
class Sides:
    """What must not change in a matrix (m, n): `left` in R^m and `right` in R^n."""

    left: Subspace
    right: Subspace

    @staticmethod
    def of(weight: Tensor, rank: int) -> "Sides":
        """The spans of the `rank` strongest singular vectors of a matrix, in float32."""
        left, _, right = torch.linalg.svd(weight.detach().float(), full_matrices=False)
        return Sides(smaller_basis(left[:, :rank]), smaller_basis(right[:rank].T))


def between(update: Tensor, sides: Sides) -> Tensor:
    """(1 - U U^T) move (1 - V V^T): the part of a move (m, n) that touches neither side.

    >>> sides = Sides.of(torch.diag(torch.tensor([9.0, 1.0])), 1)
    >>> between(torch.ones(2, 2), sides).tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    return project_out(project_out(update, sides.right).T, sides.left).T


@final
@dataclass(eq=False)
class _Tally:
    """Sums of similarities while batches pass by."""

    inputs: ModelInputs = field(default_factory=lambda: ModelInputs(0))
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """One call of a linear module; its bias is taken off again."""
        bias = module.bias
        plain = output.detach() - bias.detach() if isinstance(bias, Tensor) else output.detach()
        mask = self.inputs.tokens(plain)
        found = input_similarity(token_rows(args[0].detach(), mask).float(), token_rows(plain, mask).float())
        self.sums[name] = self.sums.get(name, 0.0) + float(found.double().sum())
        self.counts[name] = self.counts.get(name, 0) + len(found)


def similarities(context: Context, modules: Mapping[str, nn.Module], examples: int) -> dict[str, float]:
    """Mean cosine of inputs x and W x of linear modules, over the tokens of up to `examples` examples of the task."""
    tally = _Tally()
    order = numpy_generator(context.task.settings.seed, "similarity", context.task.index).permutation(
        len(context.task.data)
    )
    rows, size = order[:examples], context.passes.batch_size
    with torch.no_grad(), ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(partial(tally.note, name)).remove)
        for start in range(0, len(rows), size):
            batch = context.passes.batch([(context.task.data, rows[start : start + size])])
            tally.inputs = batch.inputs
            context.model.encode(batch)
    return {name: total / max(tally.counts[name], 1) for name, total in tally.sums.items()}


def watched(context: Context) -> dict[str, nn.Module]:
    """The linear layers among the matrices that are trained now."""
    return {name: one.module for name, one in trained_matrices(context).items() if one.is_layer}


@final
class SingularSubspace(Rule):
    """Takes out of every step of a matrix what touches its strongest singular vectors (OSF, arXiv 2504.07097).

    When a task begins every weight is split by its singular values, W = U_h S_h V_h^T + U_l S_l V_l^T, and until the
    task ends it may change by (1 - U_h U_h^T) M (1 - V_h V_h^T) alone: for x in the span of V_h, W x stays, and for any
    x the part of W x in the span of U_h. How many singular vectors a layer keeps follows from how alike its inputs and
    outputs were in the last task: the ratio is `minimum` + I (`target` - `minimum`), I being 1 on average over layers.
    A ratio above 1 - 1 / full rank leaves one singular vector to learn with. Ratios are of the smaller dimension.
    Experts kept in one tensor are split one by one; what they and their router read and give is not seen, so they keep
    the mean ratio, `target`.

    What is projected is the step, not the gradient: with AdamW a projected gradient leaves the subspace again. Tensors
    of the adapter that are no linear weights rest while weights are protected. Directions learned in one task are
    protected in the next only as far as they made their way among the strongest; inputs have no part in the split.

    Memory: while a task is learned at most (m^2 + n^2) / 2 values for a weight (m, n).
    Compute: an SVD of every weight when a task begins, one pass over `examples` examples when it ends, four products
    with thin matrices per step.
    """

    name: ClassVar[str] = "singular-subspace"
    needs: ClassVar[tuple[Need, ...]] = (BaseMatrices,)

    def __init__(
        self,
        *,
        minimum: Annotated[float, "least share of singular vectors kept, 0 to target", "paper, as recalled"] = 0.1,
        target: Annotated[float, "mean share of singular vectors kept, up to 1", "paper, as recalled"] = 0.8,
        examples: Annotated[int, "examples that inputs and outputs of layers are compared on, from 1"] = 256,
        from_start: Annotated[bool, "protect what was pretrained in the first task too"] = True,
    ) -> None:
        if not 0 <= minimum <= target <= 1:
            raise ConfigError(f"minimum is {minimum} and target {target}; give 0 <= minimum <= target <= 1")
        if examples < 1:
            raise ConfigError(f"examples is {examples}; give at least 1")
        self.minimum, self.target, self.examples, self.from_start = minimum, target, examples, from_start
        self._similarities: dict[str, float] = {}
        self._sides: dict[str, Sides] = {}

    def refuses(self, adapter: Adapter, head: Head) -> str | None:
        del head
        if not self.from_start or require(adapter, BaseMatrices).matrices_only:
            return None
        return (
            f"rule {self.name!r} protects weights from the first task on, so that what adapter {adapter.name!r} trains "
            "beside linear weights would never move; set from_start: false, or adapter: linear-layers"
        )

    def begin_task(self, context: Context) -> None:
        if self.from_start and not self._similarities:
            self._similarities = similarities(context, watched(context), self.examples)
        ratios = retained_ratios(self._similarities, self.minimum, self.target)
        self._sides = {}
        for name, matrix in sorted(trained_matrices(context).items()):
            ratio = ratios.get(name) if matrix.is_layer or not ratios else self.target
            if ratio is not None:
                for part, weight in slices(name, matrix.weight).items():
                    self._sides[part] = Sides.of(weight, retained_rank(ratio, min(weight.shape)))

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        if not self._sides:
            return updates
        whole = {name.partition("[")[0] for name in self._sides}
        allowed = dict(still(updates, whole))
        for name in whole & set(allowed):
            found = [between(move, self._sides[part]) for part, move in slices(name, allowed[name]).items()]
            allowed[name] = found[0] if allowed[name].dim() == 2 else torch.stack(found)
        return allowed

    def end_task(self, context: Context) -> None:
        self._sides = {}
        if modules := watched(context):
            self._similarities = similarities(context, modules, self.examples)

    def state(self) -> State:
        tensors: dict[str, Tensor] = {}
        kinds = {}
        for name, sides in self._sides.items():
            tensors |= {f"{name}|left": sides.left.columns, f"{name}|right": sides.right.columns}
            kinds[name] = [sides.left.kind, sides.right.kind]
        return State(tensors, {"kinds": kinds, "similarities": dict(self._similarities)})

    def load_state(self, state: State, context: Context) -> None:
        device = context.model.backbone.device
        self._similarities = dict(state.values["similarities"])
        self._sides = {}
        for name, (left, right) in state.values["kinds"].items():
            columns = [state.tensors[f"{name}|{side}"].to(device) for side in ("left", "right")]
            self._sides[name] = Sides(Subspace(columns[0], left), Subspace(columns[1], right))
