"""Subnetworks: the weights that a training had changed, trained alone (arXiv 2505.11711)."""

from typing import Annotated

from torch import Tensor

from contune.contract.parts import Rule, Tensors
from contune.numerics.masks import changed
from contune.rule.mask.external_mask import ExternalMask
from contune.rule.mask.lottery_ticket import Choose, LotteryTicket


def all_changed(tolerance: float) -> Choose:
    """Chooses every entry that changed by more than the tolerance."""

    def choose(origin: Tensors, end: Tensors, taken: Tensors) -> dict[str, Tensor]:
        return {name: changed(value, end[name], tolerance) | taken[name] for name, value in origin.items()}

    return choose


def external_mask(
    *,
    tolerance: Annotated[float, "a change up to this size is none, compared in float32", "paper"] = 1e-5,
    tuned: Annotated[str | None, "the tuned model, hub id or folder; null: train on trial first"] = None,
) -> Rule:
    """The weights that another training had changed, and nothing else, are trained (arXiv 2505.11711).

    With `tuned`, a fine-tuned version of the model such as one after reinforcement learning, they are those that differ
    there: one mask for all tasks. Without it each task trains freely first, goes back, and trains again what had
    changed.

    Memory: the trained weights once more while a task is learned; with `tuned` a bit per weight.
    Compute: twice that of plain training; with `tuned` once.
    """
    if tuned is not None:
        return ExternalMask("external-mask", tuned, tolerance)
    return LotteryTicket("external-mask", all_changed(tolerance), keep=False, tolerance=tolerance)
