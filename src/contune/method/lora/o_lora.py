"""O-LoRA: one LoRA per task, kept orthogonal to the earlier ones (arXiv 2310.14152)."""

from contune.adapter.lora.per_task import LoraPerTask
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.anchor.orthogonality import Orthogonality


def o_lora(
    *,
    rank: int = 8,
    alpha: float = 32.0,
    dropout: float = 0.0,
    strength: float = 0.5,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Give each task its own LoRA, freeze the finished ones, and penalise overlap of their input directions.

    Memory: rank (d_in + d_out) per wrapped matrix and task. Compute: as `lora`, plus rank^2 x tasks x d_in per matrix.
    Defaults: rank 8, alpha 32, strength 0.5 with the L1 form of the released code. Differs: an encoder with a growing
    linear head in place of a text-to-text model, so the head's old rows compete in the loss; their second term
    (lambda_2, 0 in all released runs) is left out.

    >>> o_lora().rules[0].name
    'orthogonality'
    """
    adapter = LoraPerTask(rank=rank, alpha=alpha, dropout=dropout, targets=targets, layers=layers)
    return Method(adapter, Linear(), (Orthogonality(strength=strength),), train={"lr": 1e-3, "epochs": 5})
