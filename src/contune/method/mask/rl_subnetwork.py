"""Subnetwork training: only those weights that another training had changed (arXiv 2505.11711)."""

from typing import Annotated

from contune.adapter.weights.freezable import freezable
from contune.contract.options import Layers
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.mask.subnetwork import external_mask


def rl_subnetwork(
    *,
    tolerance: Annotated[float, external_mask] = 1e-5,
    tuned: Annotated[str | None, external_mask] = None,
    layers: Layers = "all",
    lr_scale: Annotated[float, freezable] = 0.01,
) -> Method:
    """Fine-tune only the weights that reinforcement learning, or a first free training, had changed.

    With `tuned`, a version of the model after reinforcement learning, the mask is where it differs, one for all tasks.
    Without, each task follows the paper's protocol: train freely, rewind, train again what changed by more than
    `tolerance`, in the same order of examples. No reward is learned from: the loss is the task's own.

    Use it to measure how sparse a training is (the rule's `sparsities`, one per task) and to repeat the paper: without
    `tuned` it knows the mask in hindsight only and saves nothing. Supervised updates are dense, and Adam moves nearly
    every weight by more than 1e-5: raise `tolerance` for a mask that lets something rest.

    Memory: the model in place of the base; a copy of it while a task is learned, or a bit per weight with `tuned`.
    Compute: twice that of full fine-tuning, once with `tuned`.
    Defaults: the paper's tolerance; rates and epochs are ours. Weights are compared in float32; versions stored in bf16
    look sparser than they are, since small updates round to nothing (arXiv 2509.04259).
    Differs:
    - A stream of tasks; overlap of their masks far above chance is the paper's finding, and means that tasks meet in
      the same weights.

    >>> rl_subnetwork().rules[0].name
    'external-mask'
    """
    return Method(
        freezable(layers=layers, lr_scale=lr_scale),
        Linear(),
        (external_mask(tolerance=tolerance, tuned=tuned),),
        train={"lr": 1e-2, "epochs": 5},
    )
