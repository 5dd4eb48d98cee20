"""InfLoRA: interference-free low-rank adaptation, in directions that old inputs do not have (arXiv 2404.00228)."""

from typing import Annotated

from contune.adapter.lora.inflora_basis import InfloraBasis
from contune.contract.options import KeyValueTargets, Layers
from contune.head.linear import Linear
from contune.method.method import Method


def inflora(
    *,
    rank: Annotated[int, InfloraBasis] = 10,
    threshold: Annotated[float, InfloraBasis] = 0.95,
    growth: Annotated[float, InfloraBasis] = 0.1,
    targets: Annotated[KeyValueTargets, "paper"] = "key-value",
    layers: Layers = "all",
) -> Method:
    """Give each task a LoRA on keys and values that reads only directions orthogonal to the inputs of finished tasks.

    Use it for images in new classes without old examples; add rule `alignment` where scores of different tasks must be
    comparable, which a loss over the task's own classes does not make them.

    Memory: rank (d_in + d_out) per wrapped matrix and task, and at most d_in^2 / 2 values per layer for old inputs.
    Compute: two more passes over each task and two eigenvalue problems of size d_in per layer, in float64.
    Defaults: rank, threshold and Adam at 5e-4 of the released code for CIFAR-100, with fewer epochs.
    Differs:
    - The paper's threshold rises in a line to 1 over a known number of tasks; here each task closes the share `growth`
      of what is left, the same first step at growth = 1 / tasks.
    - Energies are squares of the second moment's eigenvalues, as in the released code, to which 0.95 belongs.
    - The fewest directions that reach the threshold are kept, after the first task as well, where the released code
      keeps one fewer.
    - Moments are taken in the deterministic view, not on augmented images.

    >>> inflora().adapter.name
    'inflora-basis'
    """
    adapter = InfloraBasis(rank=rank, threshold=threshold, growth=growth, targets=targets, layers=layers)
    train = {"optimizer": "adam", "lr": 5e-4, "epochs": 5}
    return Method(adapter, Linear(loss_over="own-task"), train=train)
