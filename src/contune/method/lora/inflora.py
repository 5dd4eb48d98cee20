"""InfLoRA: interference-free low-rank adaptation, in directions that old inputs do not have (arXiv 2404.00228)."""

from contune.adapter.lora.inflora_basis import InfloraBasis
from contune.head.linear import Linear
from contune.method.method import Method


def inflora(
    *,
    rank: int = 10,
    threshold: float = 0.95,
    growth: float = 0.1,
    targets: str | list[str] = "key-value",
    layers: str | list[int] = "all",
) -> Method:
    """Give each task a LoRA on keys and values that reads only directions orthogonal to the inputs of finished tasks.

    Memory: rank (d_in + d_out) per wrapped matrix and task, and at most d_in^2 / 2 values per layer for old inputs.
    Compute: two more passes over each task and two eigenvalue problems of size d_in per layer, in float64. Defaults:
    rank, threshold and Adam at 5e-4 of the released code for CIFAR-100, with fewer epochs.

    Differs: the paper's threshold rises in a line to 1 over a known number of tasks; here each task closes the share
    `growth` of what is left, the same first step at growth = 1 / tasks. Energies are squares of the second moment's
    eigenvalues, as in the released code, to which 0.95 belongs. The fewest directions that reach the threshold are
    kept, after the first task as well, where the released code keeps one fewer. Moments are taken in the deterministic
    view, not on augmented images. As in the paper the loss is over the task's own classes, so scores of different tasks
    are not calibrated against each other; rule `alignment` does that.

    >>> inflora().adapter.name
    'inflora-basis'
    """
    adapter = InfloraBasis(rank=rank, threshold=threshold, growth=growth, targets=targets, layers=layers)
    train = {"optimizer": "adam", "lr": 5e-4, "epochs": 5}
    return Method(adapter, Linear(loss_over="own-task"), train=train)
