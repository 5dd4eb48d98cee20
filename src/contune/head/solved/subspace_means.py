"""Class means in the subspace of every task's adapter, completed where a class was never seen (EASE, 2403.12030).

Shapes: B rows, C classes, T modules (one per task), d width of one module's features.
"""

from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from contune.contract.capability import Need, TaskModules, require
from contune.contract.context import Context
from contune.contract.parts import Head, Parameters
from contune.contract.state import State
from contune.head.linear import Auxiliary
from contune.numerics.averages import summed_blocks


def similarity_weights(old: Tensor, new: Tensor) -> Tensor:
    """Shares (n, m) of m new classes in each of n old ones: softmax of the cosines of their means, no temperature.

    Without one the shares are nearly equal; the paper has it so, and so have we.

    >>> similarity_weights(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0], [2.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """
    return (functional.normalize(old, dim=1) @ functional.normalize(new, dim=1).T).softmax(dim=1)


def completed_means(means: Tensor, known: Tensor, owners: Tensor) -> Tensor:
    """Means (C, T, d) with a stand-in wherever `known` (C, T) is false: a mix of the means of classes known there.

    The shares of the mix are similarities in the block of the old class's owner (C,), where both have means. Only means
    of real features are mixed: an old class i is unknown in blocks after the last task that showed it, and a class that
    is known in such a block is known in every earlier one, that of i's owner included. Classes without an owner (-1)
    were never seen and stay as they are.
    """
    full = means.clone()
    for block in range(means.shape[1]):
        donors = known[:, block]
        lacking = ~donors & (owners >= 0)
        for owner in torch.unique(owners[lacking]).tolist() if donors.any() else ():
            rows = lacking & (owners == owner)
            shares = similarity_weights(means[rows, owner], means[donors, owner])
            full[rows, block] = shares @ means[donors, block]
    return full


def subspace_scores(features: Tensor, means: Tensor, owners: Tensor, alpha: float) -> Tensor:
    """Scores (B, C) of features (B, T, d): the cosine in the owner's block plus alpha / (T - 1) of the others' sum.

    >>> features, means = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
    >>> subspace_scores(features, means, torch.tensor([0]), 0.5).tolist()
    [[1.5]]
    """
    own = features.new_zeros(len(features), len(means))
    others = torch.zeros_like(own)
    for block in range(means.shape[1]):
        cosines = functional.normalize(features[:, block], dim=1) @ functional.normalize(means[:, block], dim=1).T
        own += cosines * (owners == block)
        others += cosines * (owners != block)
    return own + alpha / max(means.shape[1] - 1, 1) * others


@final
class SubspaceMeans(Head):
    """One mean per class and module; a class is scored in the module that its first task trained, and a little in others.

    Sections 4.2 and 4.3 of EASE (arXiv 2403.12030), as released: stand-ins for means that no example could give are all
    made anew after every task, from real means alone. The current module is trained through a cosine head over the
    task's own classes, dropped at the task's end. A class that comes back adds its new examples to its means and keeps
    its owner. Sums are kept in float64, so order and batch size do not matter. Where the task is named, its module
    alone answers.

    Memory: C x T x d.
    Compute: one pass of each task's examples through every module so far.
    Differs:
    - Owners come from what each task showed and not from equal task sizes.
    - The released code's optional block of the unadapted model (`beta`, 0 by default) is left out.
    """

    name: ClassVar[str] = "subspace-means"
    needs: ClassVar[tuple[Need, ...]] = (TaskModules,)
    takes_modules: ClassVar[Literal["one", "fixed", "growing"]] = "growing"
    loss_over: Literal["seen", "own-task"] = "own-task"

    def __init__(
        self,
        *,
        alpha: Annotated[float, "weight of all other modules together in a score", "released code"] = 0.1,
    ) -> None:
        self.alpha = alpha
        self._sums = torch.zeros(0, 0, 0, dtype=torch.float64)
        self._counts = torch.zeros(0, 0, dtype=torch.int64)
        self._owners = torch.zeros(0, dtype=torch.int64)
        self._means = torch.zeros(0, 0, 0, dtype=torch.float64)
        self._lent = Auxiliary("cosine")

    def begin_task(self, context: Context) -> None:
        shape = (context.task.seen, require(context.model.adapter, TaskModules).modules())
        self._sums = padded(self._sums, (*shape, context.model.adapter.feature_size(context.model.backbone)), 0)
        self._counts = padded(self._counts, shape, 0)
        self._owners = padded(self._owners, shape[:1], -1)
        self._complete()
        self._lent.begin_task(context)

    def trained(self) -> Parameters:
        return self._lent.trained()

    def training_logits(self, features: Tensor) -> Tensor:
        return self._lent.logits(features)

    def fit(self, context: Context) -> None:
        dataset, shape = (
            context.task.data,
            (len(self._counts), context.model.adapter.feature_size(context.model.backbone)),
        )
        pairs = [
            summed_blocks(context.passes.module_blocks(dataset, module), dataset.labels, *shape)
            for module in range(require(context.model.adapter, TaskModules).modules())
        ]
        self._sums = self._sums + torch.stack([sums for sums, _ in pairs], dim=1)
        self._counts = self._counts + torch.stack([counts for _, counts in pairs], dim=1)
        own = context.model.module_of(context.task.index)
        first_shown = (self._counts[:, own] > 0) & (self._owners < 0)
        self._owners = self._owners.masked_fill(first_shown, own)
        self._complete()

    def _complete(self) -> None:
        means = self._sums / self._counts.clamp(min=1).unsqueeze(2)
        self._means = completed_means(means, self._counts > 0, self._owners)

    def end_task(self, context: Context) -> None:
        del context
        self._lent.drop()

    def logits(self, features: Tensor) -> Tensor:
        blocks = features.double().cpu().reshape(len(features), *self._means.shape[1:])
        return self._answerable(subspace_scores(blocks, self._means, self._owners, self.alpha))

    def routed_logits(self, features: Tensor, routes: Tensor, *, training: bool) -> Tensor:
        if training:
            return self.training_logits(features)
        rows = functional.normalize(features.double().cpu(), dim=1)
        scores = rows.new_zeros(len(rows), len(self._means))
        for module in torch.unique(routes).tolist():
            means = functional.normalize(self._means[:, module], dim=1)
            scores[routes.cpu() == module] = rows[routes.cpu() == module] @ means.T
        return self._answerable(scores)

    def _answerable(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(self._owners < 0, float("-inf")).float()

    def state(self) -> State:
        return State({"sums": self._sums, "counts": self._counts, "owners": self._owners, **self._lent.tensors()})

    def load_state(self, state: State, context: Context) -> None:
        self._sums, self._counts = state.tensors["sums"], state.tensors["counts"]
        self._owners = state.tensors["owners"]
        self._complete()
        self._lent.load(state, context)


def padded(values: Tensor, shape: tuple[int, ...], fill: int) -> Tensor:
    """A copy of `values` in the corner of a tensor of this shape, the rest filled.

    >>> padded(torch.tensor([1, 2]), (3,), -1).tolist()
    [1, 2, -1]
    """
    grown = values.new_full(shape, fill)
    grown[tuple(slice(size) for size in values.shape)] = values
    return grown
