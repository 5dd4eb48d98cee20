"""A-GEM: steps that do not raise the loss of a draw from old examples (arXiv 1812.00420)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.project.gradient_memory import AverageGradientMemory


def a_gem(
    *,
    size: Annotated[int, AverageGradientMemory] = 500,
    batch_size: Annotated[int, AverageGradientMemory] = 32,
    rank: Rank = 8,
    alpha_lora: Alpha = 16.0,
    targets: Targets = "query-value",
    layers: Layers = "all",
) -> Method:
    """Keep `size` old examples; where a step climbs the loss of `batch_size` of them, take that part out of it.

    Use it where old examples may be looked at but not learned from again; where they may, er is simpler.

    Memory: the examples, the same number for any number of tasks.
    Compute: one more forward and backward pass per step.
    Defaults: ours, all of them; the paper keeps a number of examples for every class.
    Differs:
    - What is trained is the LoRA of method lora.
    - A reservoir over all examples in place of a ring per class.
    - Steps are projected and not gradients, which for the paper's plain SGD is the same.
    - One head answers over all classes, each learned against its own task's alone, where the paper names the task.

    >>> a_gem().rules[0].name
    'average-gradient-memory'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    rule = AverageGradientMemory(size=size, batch_size=batch_size)
    return Method(adapter, Linear(loss_over="own-task"), (rule,), train={"lr": 2e-3, "epochs": 5})
