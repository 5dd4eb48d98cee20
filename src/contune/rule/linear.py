"""The linear layers and the matrices whose weights are trained, as rules see them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from contune.backbone.linear import Matrix
from contune.contract.capability import BaseMatrices, LinearWeights, find, require
from contune.contract.context import Context
from contune.contract.parts import Tensors
from contune.errors import CombinationError

PREFIX = "adapter."


def linear_modules(context: Context) -> dict[str, nn.Module]:
    """The linear layers whose weights the adapter trains now, by the name that the context gives the weight."""
    if not context.model.adapter_trainable:
        return {}
    return {f"{PREFIX}{name}": layer for name, layer in require(context.model.adapter, LinearWeights).linear().items()}


def trained_matrices(context: Context) -> dict[str, Matrix]:
    """The model's matrices that the adapter trains now, experts among them, by the name that the context gives them."""
    found = find(context.model.adapter, BaseMatrices)
    if found is None or not context.model.adapter_trainable:
        return {}
    return {f"{PREFIX}{name}": one for name, one in found.matrices().items()}


def require_watched(context: Context, rule: str) -> None:
    """Refuse matrices whose inputs and outputs a rule cannot see, so that they would learn beside it, unprotected."""
    unseen = [name for name, one in trained_matrices(context).items() if not one.is_layer]
    if unseen:
        raise CombinationError(
            f"rule {rule!r} looks at what linear layers read and give, and {unseen[0].removeprefix(PREFIX)!r} is "
            f"none (it is of experts, or of what chooses them): {len(unseen)} such matrices would learn unprotected; train "
            "a lora with named targets under this rule, or take lift, osf or hft for this model"
        )


def slices(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A matrix by its name; of a tensor of experts each expert's, by that name and its number.

    >>> list(slices("w", torch.zeros(3, 2))), list(slices("w", torch.zeros(2, 3, 2)))
    (['w'], ['w[0]', 'w[1]'])
    """
    return {name: tensor} if tensor.dim() == 2 else {f"{name}[{at}]": each for at, each in enumerate(tensor)}


def still(updates: Tensors, linear: Iterable[str]) -> Tensors:
    """Moves with those of the adapter's tensors that are no linear weights set to zero."""
    free = frozenset(linear)
    rest = {n for n in updates if n.startswith(PREFIX) and n not in free}
    return {n: torch.zeros_like(update) if n in rest else update for n, update in updates.items()}
