"""EWC: pull important weights back, importance by Fisher information (arXiv 1612.00796)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.head.options import LossOver
from contune.method.method import Method
from contune.rule.anchor.anchor import EWC


def ewc(
    *,
    strength: Annotated[float, EWC] = 100.0,
    examples: Annotated[int, EWC] = 200,
    rank: Rank = 8,
    alpha_lora: Alpha = 16.0,
    targets: Targets = "query-value",
    loss_over: Annotated[LossOver, "LibContinual's code"] = "own-task",
    layers: Layers = "all",
) -> Method:
    """Hold what is trained to its old values, each as strongly as the Fisher information says that it mattered.

    The penalty is strength / 2 * sum F (theta - theta*)^2, with one running anchor theta* and gradients of single
    examples (online EWC).

    Use it where no old example may be kept and one set of weights lives through all tasks.

    Memory: the trained tensors twice more.
    Compute: `examples` backward passes a task, one sum a step.
    Defaults: strength, examples, the LoRA, rate and epochs are ours: what strength suits depends on the model, on what
    is trained and on the learning rate, and the paper and its many ports have one for each data set. The loss is over
    the task's own classes as in LibContinual: the paper's tasks share their outputs or are named.
    Differs:
    - What is trained is the LoRA of method lora, not the whole network.
    - One running anchor in place of one for every task.

    >>> ewc().rules[0].name
    'ewc'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    return Method(
        adapter,
        Linear(loss_over=loss_over),
        (EWC(strength=strength, examples=examples),),
        train={"lr": 2e-3, "epochs": 5},
    )
