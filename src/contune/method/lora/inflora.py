"""InfLoRA: interference-free low-rank adaptation, in directions that old inputs do not have (arXiv 2404.00228)."""

from typing import Annotated, Any

from contune.adapter.lora.inflora_basis import InfloraBasis
from contune.contract.options import KeyValueTargets, Layers
from contune.head.linear import Linear
from contune.method.method import Method

# The released code's gradient loop on CIFAR-100.
LOOP: dict[str, Any] = {
    "epochs": 20,
    "lr": 5e-4,
    "batch_size": 128,
    "optimizer": "adam",
    "schedule": "quarter-cosine",
    "clip": None,
}


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
    Defaults: the released code's for CIFAR-100: rank, threshold, 20 epochs in batches of 128, Adam at 5e-4 that falls
    along a quarter of a cosine, no clipping; images are cropped and flipped there too (set train.augment). `growth` is
    ours, see below. Where tasks are small, smaller batches learn more.
    Differs:
    - The paper's threshold rises in a line to 1 over a known number of tasks; here each task closes the share `growth`
      of what is left, the same first step at growth = 1 / tasks.
    - Energies are squares of the second moment's eigenvalues, as in the released code, to which 0.95 belongs.
    - The fewest directions that reach the threshold are kept, after the first task as well, where the released code
      keeps one fewer.
    - Moments are taken in the deterministic view, not on augmented images.
    - The learning rate falls with every step, there with every epoch.

    >>> inflora().adapter.name
    'inflora-basis'
    """
    adapter = InfloraBasis(rank=rank, threshold=threshold, growth=growth, targets=targets, layers=layers)
    return Method(adapter, Linear(loss_over="own-task"), train=LOOP)
