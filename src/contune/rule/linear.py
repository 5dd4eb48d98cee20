"""The linear layers whose weights are trained, as rules see them."""

from collections.abc import Iterable

import torch
from torch import nn

from contune.contract.capability import LinearWeights, require
from contune.contract.context import Context
from contune.contract.parts import Tensors

PREFIX = "adapter."


def linear_modules(context: Context, ability: type[LinearWeights] = LinearWeights) -> dict[str, nn.Module]:
    """The linear layers whose weights the adapter trains now, by the name that the context gives the weight."""
    if not context.model.adapter_trainable:
        return {}
    return {f"{PREFIX}{name}": layer for name, layer in require(context.model.adapter, ability).linear().items()}


def still(updates: Tensors, linear: Iterable[str]) -> Tensors:
    """Moves with those of the adapter's tensors that are no linear weights set to zero."""
    free = frozenset(linear)
    rest = {n for n in updates if n.startswith(PREFIX) and n not in free}
    return {n: torch.zeros_like(update) if n in rest else update for n, update in updates.items()}
