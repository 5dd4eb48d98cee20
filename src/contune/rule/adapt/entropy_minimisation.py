"""Entropy minimisation: answers are made surer on the inputs just answered (Tent, arXiv 2006.10726)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, final

from torch import Tensor
from torch.nn import functional

from contune.contract.context import Context
from contune.contract.data import Batch, Outputs
from contune.contract.parts import Rule, Trait


def entropies(logits: Tensor) -> Tensor:
    """Entropy (U,) in nats of softmax over each row of scores (U, C).

    >>> import torch
    >>> round(entropies(torch.tensor([[0.0, 0.0]])).item(), 4)
    0.6931
    """
    log_p = functional.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


@final
class EntropyMinimisation(Rule):
    """When the model adapts to inputs without labels, `weight` times the mean entropy of its answers is the loss.

    It acts in `Learner.adapt` alone and leaves training as it is. The paper trains the scales and shifts of normalisation
    layers, which is adapter `layer-norm`, by one step on each batch after it was answered. Memory: none. Compute: one
    forward and backward pass for each batch that is answered.

    Differs:

    - Transformers have layer norms: there are no batch statistics to replace, the paper's other half.
    """

    name: ClassVar[str] = "entropy-minimisation"
    needs_traits: ClassVar[frozenset[Trait]] = frozenset({Trait.COMPETING})
    idle: ClassVar[Mapping[str, object]] = {"weight": 0.0}

    def __init__(self, *, weight: Annotated[float, "factor on the mean entropy of the answers"] = 1.0) -> None:
        self.weight = weight

    def unlabelled_loss(self, context: Context, batch: Batch, outputs: Outputs) -> Tensor | None:
        del context
        return self.weight * batch.mean(entropies(outputs.logits)) if self.weight else None
