"""Output directions: steps stay orthogonal to the gradients of old examples' scores (OGD, arXiv 1910.07104)."""

import math
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from contune.contract.capability import THROUGH_TASKS, Lifetime, Need
from contune.contract.context import Context
from contune.contract.data import Rows
from contune.contract.parts import Adapter, Head, Rule, Tensors
from contune.contract.randomness import numpy_generator
from contune.contract.state import State, on_device
from contune.errors import ConfigError

DRAWS = "output-directions"  # no part's name: renaming the part must not draw other examples
DEPENDENT = 1e-3  # norm of what is left of a unit vector below which it is rounding, not a direction of its own


def widened(rows: Tensor, size: int) -> Tensor:
    """Rows (m, k) with zeros behind them up to width `size`: of a tensor that has grown by rows since.

    >>> widened(torch.ones(1, 2), 3).tolist()
    [[1.0, 1.0, 0.0]]
    """
    return functional.pad(rows, (0, size - rows.shape[1]))


def coordinates(basis: Tensors, vector: Tensors) -> Tensor:
    """Inner products (m,) of a vector, one tensor for each name, with rows (m, size) of orthonormal directions.

    >>> coordinates({"a": torch.eye(2)}, {"a": torch.tensor([[3.0], [4.0]])}).tolist()
    [3.0, 4.0]
    """
    return torch.stack([widened(rows, vector[n].numel()) @ vector[n].reshape(-1) for n, rows in basis.items()]).sum(0)


def orthogonal(basis: Tensors, vector: Tensors) -> dict[str, Tensor]:
    """A vector less its part in the span of the directions (OGD, algorithm 1).

    >>> orthogonal({"a": torch.tensor([[1.0, 0.0]])}, {"a": torch.tensor([3.0, 4.0])})["a"].tolist()
    [0.0, 4.0]
    """
    left = dict(vector)
    if basis:
        inside = coordinates(basis, vector)
        for name, rows in basis.items():
            left[name] = vector[name] - widened((inside @ rows)[None], vector[name].numel()).view_as(vector[name])
    return left


def length(vector: Tensors) -> float:
    """The Euclidean norm over all names.

    >>> length({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    5.0
    """
    squares = sum(value.double().square().sum() for _, value in sorted(vector.items()))
    return math.sqrt(float(squares))


def enlarged(basis: Tensors, vector: Tensors) -> Tensors:
    """The directions and that of one more vector, made orthogonal to them; as they are where it lies in their span.

    Orthogonalised twice, so that the new direction is orthogonal to rounding.

    >>> [enlarged({"a": torch.eye(2)[:1]}, {"a": torch.tensor([5.0, y])})["a"].tolist() for y in (0.0, 2.0)]
    [[[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]
    """
    whole = length(vector)
    if not whole:
        return basis
    unit = {name: value / whole for name, value in vector.items()}
    left = orthogonal(basis, orthogonal(basis, unit))
    size = length(left)
    if size < DEPENDENT:
        return basis
    rows = {name: (value / size).reshape(1, -1) for name, value in left.items()}
    return {n: torch.cat([widened(basis[n], row.shape[1]), row]) if n in basis else row for n, row in rows.items()}


def answer_gradient(context: Context, rows: Rows) -> dict[str, Tensor]:
    """Gradient of the mean score of these examples' right answers, before any softmax, for every trained tensor."""
    trained = context.model.trained()
    batch = context.passes.batch([(context.task.data, rows)])
    scores = context.model.forward(batch).logits.gather(1, batch.labels[:, None]).mean()
    found = torch.autograd.grad(scores, list(trained.values()), allow_unused=True)
    return {
        name: torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(trained.items(), found, strict=True)
    }


@final
class OrthogonalGradients(Rule):
    """Takes out of every step what would change, to first order, the scores of old examples' right answers (OGD-GTL).

    At the end of a task the gradients of the right answer's score of `size` of its examples, one at a time, join an
    orthonormal basis; a gradient that lies in the span already adds nothing. Where answers are written, an answer's
    score is the mean over its tokens. All trained tensors, adapter and head, make one long vector. What is projected is
    the step: for plain SGD that is the paper's rule; with momentum, decay or Adam the projected gradient would not bind.
    The protection is first-order, at the weights where each task ended: it weakens as these are left behind.

    Memory: `size` times the trained tensors for every task. Compute: two products with the basis per step, and one
    forward and backward pass per kept direction.
    """

    name: ClassVar[str] = "orthogonal-gradients"
    needs: ClassVar[tuple[Need, ...]] = (THROUGH_TASKS & ~Lifetime.REDRAWN,)

    def __init__(
        self,
        *,
        size: Annotated[int, "gradients of old answers kept for every task, from 0", "paper"] = 200,
    ) -> None:
        if size < 0:
            raise ConfigError(f"size is {size}; give at least 0")
        self.size = size
        self._basis: Tensors = {}

    def refuses(self, adapter: Adapter, head: Head) -> str | None:
        del head
        if adapter.lifetime in THROUGH_TASKS:
            return None
        return (
            f"rule {self.name!r} keeps how old answers depend on all that is trained, but adapter {adapter.name!r} trains "
            "new tensors in every task too; set adapter: lora"
        )

    def updates(self, context: Context, updates: Tensors) -> Tensors:
        basis = {name: rows for name, rows in self._basis.items() if name in updates}
        return orthogonal(basis, updates) if basis else updates

    def end_task(self, context: Context) -> None:
        generator = numpy_generator(context.task.settings.seed, DRAWS, context.task.index)
        order = generator.permutation(len(context.task.data))
        if not context.model.trained():
            return
        for number in range(min(self.size, len(order))):
            self._basis = enlarged(self._basis, answer_gradient(context, order[number : number + 1]))

    def state(self) -> State:
        return State(dict(self._basis))

    def load_state(self, state: State, context: Context) -> None:
        self._basis = on_device(state.tensors, context.model.backbone.device)
