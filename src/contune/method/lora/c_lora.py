"""C-LoRA: one LoRA per task, kept away from the weights that earlier ones changed (arXiv 2304.06027)."""

from contune.adapter.lora.per_task import LoraPerTask
from contune.backbone.targets import key_value_targets
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.anchor.overlap_penalty import OverlapPenalty


def c_lora(
    *,
    rank: int = 16,
    strength: float = 1e4,
    dropout: float = 0.0,
    targets: str | list[str] = "key-value",
    layers: str | list[int] = "all",
) -> Method:
    """Sum one LoRA per task on keys and values, and penalise the new one where the sum of the old is large, by entries.

    Memory: rank (d_in + d_out) per wrapped matrix and task. Compute: as `lora`, plus rank x tasks x d_in x d_out per
    matrix and step. Updates are added without a factor, as in the paper. Rank and strength are our choice: the strength
    has the fourth power of an update's size, so it must fit model and learning rate; the paper's is for a diffusion model.

    Differs: a classifier in place of text-to-image generation, so its random token embeddings are left out. A projection
    that makes queries, keys and values in one is wrapped whole. The loss is over the task's own classes.

    >>> c_lora().rules[0].name
    'overlap-penalty'
    """
    targets = key_value_targets(targets)
    adapter = LoraPerTask(rank=rank, alpha=rank, dropout=dropout, targets=targets, layers=layers)
    rules = (OverlapPenalty(strength=strength),)
    return Method(adapter, Linear(loss_over="own-task"), rules, train={"lr": 1e-3, "epochs": 5})
