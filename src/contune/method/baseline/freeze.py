"""Freeze: the embeddings and the bottom layers learn in the first task and rest in all others (arXiv 2501.13453)."""

from typing import Annotated

from contune.adapter.weights.subset import full
from contune.head.linear import Linear
from contune.method.method import Method


def freeze(
    *,
    layers: Annotated[int, "lowest layers that rest, with the embeddings", "released, instruction tuning"] = 3,
    learns_first: Annotated[bool, "train them in the first task; false: they rest at once", "released code"] = True,
    lr_scale: Annotated[float, full] = 0.01,
) -> Method:
    """Train the whole model on the first task, and from the second on leave its embeddings and lowest layers alone.

    The first steps of a new task turn what the lowest layers learned about the form of answers, which looks like
    forgetting and is not (spurious forgetting); so these layers keep every bit. A model with no more than `layers`
    layers keeps its top one trained.

    Use it for language models that lose a skill at once and regain it after a few steps; without `learns_first` for
    models that are aligned already, whose lowest states are then cached.

    Memory: the optimizer's two copies of what trains.
    Compute: a full backward pass, from the second task on only down to the lowest layer that trains.
    Defaults: 3 layers, from the second task on, as in the released configurations for continual instruction tuning; for
    safety alignment those have 6 layers from the first task on. Rates and epochs are ours.
    Differs:
    - The released code sets the rate of what rests to zero; here it takes no part at all.
    - No early stop.
    - The model learns at `lr_scale` times the rate, as in finetune, and a head of classes, where there is one, at all
      of it.
    - Tied embeddings hold the language head still, which never trains here.
    - Models with an encoder and a decoder are refused.

    >>> freeze().adapter.name
    'full'
    """
    adapter = full(lr_scale=lr_scale, frozen=layers, frozen_from=1 if learns_first else 0)
    return Method(adapter, Linear(), train={"lr": 1e-2, "epochs": 5})
