"""Subnetworks: the weights that a training had changed, trained alone (arXiv 2505.11711)."""

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


def external_mask(*, tolerance: float = 1e-5, tuned: str | None = None) -> Rule:
    """The weights that free training changes by more than `tolerance`, and nothing else, are trained from the start.

    With `tuned`, a fine-tuned version of the model, they are those that differ there: one mask for all tasks.
    """
    if tuned is not None:
        return ExternalMask("external-mask", tuned, tolerance)
    return LotteryTicket("external-mask", all_changed(tolerance), keep=False, tolerance=tolerance)
