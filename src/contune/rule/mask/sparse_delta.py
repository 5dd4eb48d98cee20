"""Sparse changes of a model, as vectors that add up: to keep, to apply, to compose and to take out again.

A delta holds for every tensor the places (k,) of its entries, counted row by row, and their values (k,).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from contune.contract.parts import Tensors
from contune.contract.state import State


@final
@dataclass(frozen=True, eq=False)
class SparseDelta:
    """phi: entries by tensor name; `size` counts them."""

    places: Mapping[str, Tensor]
    values: Mapping[str, Tensor]

    @property
    def size(self) -> int:
        """How many entries there are."""
        return sum(len(values) for values in self.values.values())

    def state(self) -> State:
        """The delta as a state."""
        return State.nested({"places": State(self.places), "values": State(self.values)})

    @staticmethod
    def from_state(state: State) -> "SparseDelta":
        """The delta that `state` gave."""
        return SparseDelta(state.inner("places").tensors, state.inner("values").tensors)


def sparse_delta(before: Tensors, after: Tensors, masks: Tensors, least: float = 1e-7) -> SparseDelta:
    """phi = after - before inside the masks, without changes of at most `least` (1e-7 in the code of arXiv 2110.07560).

    >>> import torch
    >>> start, end = {"a": torch.zeros(2, 2)}, {"a": torch.tensor([[0.0, 2.0], [3.0, 0.0]])}
    >>> phi = sparse_delta(start, end, {"a": end["a"] != 3.0})
    >>> phi.places["a"].tolist(), phi.values["a"].tolist()
    ([1], [2.0])
    """
    places, values = {}, {}
    for name, mask in masks.items():
        change = (after[name] - before[name]).reshape(-1)
        places[name] = (mask.reshape(-1) & (change.abs() > least)).nonzero()[:, 0]
        values[name] = change[places[name]]
    return SparseDelta(places, values)


def composed(weights: Tensors, deltas: Sequence[SparseDelta], signs: Sequence[int] | None = None) -> dict[str, Tensor]:
    """theta + sum_t s_t phi_t, where s is 1 to add a delta and -1 to take it out; other tensors are copied.

    Summed in float64, so that neither the order nor the number of deltas shows beyond rounding to the weights' type.
    Where deltas overlap they add. To have theta_0 back to the bit, keep theta_0: adding and taking out is exact but for
    rounding.

    >>> import torch
    >>> phi = SparseDelta({"a": torch.tensor([1])}, {"a": torch.tensor([5.0])})
    >>> composed({"a": torch.ones(2)}, [phi, phi])["a"].tolist(), composed({"a": torch.ones(2)}, [phi], [-1])["a"].tolist()
    ([1.0, 11.0], [1.0, -4.0])
    """
    found = {name: value.detach().clone() for name, value in weights.items()}
    for name in {name for delta in deltas for name in delta.places}:
        total = found[name].double().reshape(-1)
        for delta, sign in zip(deltas, signs or [1] * len(deltas), strict=True):
            if name in delta.places:
                total[delta.places[name]] += sign * delta.values[name].double()
        found[name] = total.view_as(found[name]).to(found[name].dtype)
    return found
