"""C-LoRA: one LoRA per task, kept away from the weights that earlier ones changed (arXiv 2304.06027)."""

from typing import Annotated

from contune.adapter.lora.per_task import LoraPerTask
from contune.backbone.targets import key_value_targets
from contune.contract.options import Dropout, KeyValueTargets, Layers, Rank
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.anchor.overlap_penalty import OverlapPenalty


def c_lora(
    *,
    rank: Rank = 16,
    strength: Annotated[float, OverlapPenalty] = 1e4,
    dropout: Dropout = 0.0,
    targets: Annotated[KeyValueTargets, "paper"] = "key-value",
    layers: Layers = "all",
) -> Method:
    """Sum one LoRA per task on keys and values, and penalise the new one where the sum of the old is large, by entries.

    Updates are added without a factor, as in the paper. The strength has the fourth power of an update's size, so it
    must fit model and learning rate.

    Use it where finished LoRAs must stay untouched and no old example may be kept.

    Memory: rank (d_in + d_out) per wrapped matrix and task.
    Compute: as lora, plus rank x tasks x d_in x d_out per matrix and step.
    Defaults: rank, strength, rate and epochs are our choice; the paper's strength is for a diffusion model.
    Differs:
    - A classifier in place of text-to-image generation, so the paper's random token embeddings are left out.
    - A projection that makes queries, keys and values in one is wrapped whole.
    - The loss is over the task's own classes.

    >>> c_lora().rules[0].name
    'overlap-penalty'
    """
    targets = key_value_targets(targets)
    adapter = LoraPerTask(rank=rank, alpha=rank, dropout=dropout, targets=targets, layers=layers)
    rules = (OverlapPenalty(strength=strength),)
    return Method(adapter, Linear(loss_over="own-task"), rules, train={"lr": 1e-3, "epochs": 5})
