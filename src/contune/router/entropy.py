"""The surest module answers: that with the lowest entropy over its own classes (HNET+ENT, arXiv 1906.00695)."""

import math
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from contune.contract.capability import Modules, require
from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.contract.parts import Router, Trait

CHUNK = 4096  # rows scored at once


def answer_entropy(logits: Tensor, *, relative: bool = True) -> Tensor:
    """Entropy (B,) of softmax(logits (B, C)), in float64; `relative`, as a share of log C, its largest value.

    One class says nothing: its share counts as 1, and so does a row without a finite score.

    >>> answer_entropy(torch.zeros(1, 4)).item(), answer_entropy(torch.zeros(1, 1)).item()
    (1.0, 1.0)
    """
    entropy: Tensor = torch.special.entr(logits.double().softmax(dim=1)).sum(dim=1)
    if not relative:
        return entropy.nan_to_num(nan=math.inf)
    classes = logits.shape[1]
    return (entropy / math.log(classes)).nan_to_num(nan=1.0) if classes > 1 else torch.ones_like(entropy)


def classes_of_modules(context: Context) -> dict[int, Tensor]:
    """The columns that each module has learned; a module without a task is left out."""
    tasks = torch.arange(len(context.model.class_tasks))
    modules = require(context.model.adapter, Modules).routes(tasks).cpu()
    columns = {
        module: context.model.class_tasks[modules == module].any(dim=0).nonzero()[:, 0].cpu()
        for module in torch.unique(modules).tolist()
    }
    return {module: own for module, own in columns.items() if len(own)}


@final
class Entropy(Router):
    """Asks every module and takes the one whose answer over its own classes has the lowest entropy (arXiv 1906.00695).

    Use it where nothing may be trained or kept for routing. Trained modules are sure of themselves on foreign examples
    too, so expect less of it than of `centroids` where tasks look different. Without `relative` a module with few
    classes looks sure, and one with a single class would answer everything; with it, a module of one class answers only
    where no other has more than one, or is as unsure as can be. Tasks of equal size make no difference.

    Memory: nothing.
    Compute: a pass through every module for every answer.
    """

    name: ClassVar[str] = "entropy"
    needs_traits: ClassVar[frozenset[Trait]] = frozenset({Trait.EXAMPLE_ROWS, Trait.COMPETING})

    def __init__(
        self,
        *,
        relative: Annotated[bool, "divide by the largest entropy of so many classes, so that few look no surer"] = True,
    ) -> None:
        self.relative = relative

    def route(self, context: Context, dataset: Dataset) -> Tensor:
        columns = classes_of_modules(context)
        modules = sorted(columns)
        each = [self._entropies(context, dataset, module, columns[module]) for module in modules]
        return torch.tensor(modules)[torch.stack(each, dim=1).argmin(dim=1)]

    def _entropies(self, context: Context, dataset: Dataset, module: int, columns: Tensor) -> Tensor:
        """Entropy (n,) of the module's answers over these columns."""
        features, device = context.passes.module_features(dataset, module), context.model.backbone.device
        found = [torch.zeros(0, dtype=torch.float64)]
        with torch.no_grad():
            for chunk in torch.split(features, CHUNK):
                routes = torch.full((len(chunk),), module, device=device)
                logits = context.model.head.routed_logits(chunk.to(device), routes, training=False).cpu()
                found.append(answer_entropy(logits[:, columns], relative=self.relative))
        return torch.cat(found)
