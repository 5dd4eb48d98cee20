"""O-LoRA: one LoRA per task, kept orthogonal to the earlier ones (arXiv 2310.14152)."""

from typing import Annotated

from contune.adapter.lora.per_task import LoraPerTask
from contune.contract.options import Alpha, Dropout, Layers, Rank, Stacks, Targets
from contune.head.linear import Linear
from contune.head.options import LossOver
from contune.method.method import Method
from contune.rule.anchor.orthogonality import Orthogonality


def o_lora(
    *,
    rank: Annotated[Rank, "released code"] = 8,
    alpha: Annotated[Alpha, "released code"] = 32.0,
    dropout: Dropout = 0.0,
    strength: Annotated[float, Orthogonality] = 0.5,
    targets: Annotated[Targets, "released code"] = "query-value",
    loss_over: Annotated[LossOver, "paper, task by task"] = "own-task",
    layers: Layers = "all",
    stacks: Stacks = "both",
) -> Method:
    """Give each task its own LoRA, freeze the finished ones, and penalise overlap of their input directions.

    Use it for language models that learn tasks one after another without old examples.

    Memory: rank (d_in + d_out) per wrapped matrix and task.
    Compute: as lora, plus rank^2 x tasks x d_in per matrix.
    Defaults: rank 8, alpha 32, strength 0.5 with the L1 form of the released code; rate and epochs are ours. The loss
    is over the task's own classes, as in the paper a task's prompts name its own options alone.
    Differs:
    - An encoder with a growing linear head in place of a text-to-text model; in language streams the model answers
      itself.
    - The second term (lambda_2, 0 in all released runs) is left out.

    >>> o_lora().rules[0].name
    'orthogonality'
    """
    adapter = LoraPerTask(rank=rank, alpha=alpha, dropout=dropout, targets=targets, layers=layers, stacks=stacks)
    return Method(
        adapter, Linear(loss_over=loss_over), (Orthogonality(strength=strength),), train={"lr": 1e-3, "epochs": 5}
    )
