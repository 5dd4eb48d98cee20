"""Learning without forgetting: the old model teaches on the new data (arXiv 1606.09282)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.head.options import LossOver
from contune.method.method import Method
from contune.method.options import of
from contune.rule.anchor.distillation import Distillation
from contune.rule.mask.new_rows_first import NewRowsFirst


def lwf(
    *,
    weight: Annotated[float, Distillation] = 1.0,
    temperature: Annotated[float, Distillation] = 2.0,
    warmup: Annotated[float, of(NewRowsFirst, "share")] = 0.2,
    loss_over: Annotated[LossOver, "paper, a head for each task"] = "own-task",
    rank: Rank = 8,
    alpha_lora: Alpha = 16.0,
    targets: Targets = "query-value",
    layers: Layers = "all",
) -> Method:
    """Keep the old classes' scores on new examples near those of the model before the task.

    For the share `warmup` of a later task's steps the new classes' head rows learn alone, then everything does.

    Use it where no old example may be kept and new examples look enough like old ones to remind the model of them.

    Memory: the trained tensors once more.
    Compute: one more forward pass a step.
    Defaults: weight 1, temperature 2, a warm-up and the loss over the task's own classes as in the paper; that the
    warm-up is a fifth of the steps is ours, where the paper's goes on until it converges; the LoRA, rate and epochs are
    ours. Ports weigh the distance otherwise: mammoth's default is 0.5.
    Differs:
    - What is trained is the LoRA of method lora.
    - The distance has the factor temperature^2 of knowledge distillation, which the paper's has not.
    - The old classes are in one softmax, where the paper sums a distance for each old task.

    >>> [rule.name for rule in lwf().rules]
    ['distillation', 'new-rows-first']
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    rules = (Distillation(weight=weight, temperature=temperature), NewRowsFirst(share=warmup))
    return Method(adapter, Linear(loss_over=loss_over), rules, train={"lr": 2e-3, "epochs": 5})
