"""MAS: pull important weights back, importance by how much they move the output (arXiv 1711.09601)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.head.options import LossOver
from contune.method.method import Method
from contune.rule.anchor.anchor import MAS


def mas(
    *,
    strength: Annotated[float, MAS] = 1.0,
    examples: Annotated[int, MAS] = 200,
    rank: Rank = 8,
    alpha_lora: Alpha = 16.0,
    targets: Targets = "query-value",
    loss_over: Annotated[LossOver, "paper, a head for each task"] = "own-task",
    layers: Layers = "all",
) -> Method:
    """Hold what is trained to its old values, each as strongly as it moves the size of the scores.

    The penalty is strength * sum Omega (theta - theta*)^2, Omega being the mean gradient size of the squared norm of
    the scores.

    Use it as ewc, and where importance should be measured without labels.

    Memory: the trained tensors twice more.
    Compute: `examples` backward passes a task, one sum a step.
    Defaults: strength, examples, the LoRA, rate and epochs are ours; the loss is over the task's own classes, as the
    paper has a head for each task.
    Differs:
    - What is trained is the LoRA of method lora.

    >>> mas().rules[0].name
    'mas'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    return Method(
        adapter,
        Linear(loss_over=loss_over),
        (MAS(strength=strength, examples=examples),),
        train={"lr": 2e-3, "epochs": 5},
    )
