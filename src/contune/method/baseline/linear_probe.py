"""A linear classifier on frozen features, trained task after task."""

from contune.adapter.none import NoAdapter
from contune.head.linear import Linear
from contune.method.method import Method


def linear_probe() -> Method:
    """Train a growing linear head alone; the features never change, yet the head forgets.

    Use it to see how much forgetting there is in the head by itself.

    Memory: the head.
    Compute: features are computed once per example, then a matrix product a step.
    Defaults: rate and epochs are ours; the loss is over all classes seen.

    >>> linear_probe().rules
    ()
    """
    return Method(NoAdapter(), Linear(), train={"lr": 1e-2, "epochs": 20})
