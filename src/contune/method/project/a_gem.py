"""A-GEM: steps that do not raise the loss of a draw from old examples (arXiv 1812.00420)."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.project.gradient_memory import AverageGradientMemory


def a_gem(
    *,
    size: int = 500,
    batch_size: int = 32,
    rank: int = 8,
    alpha_lora: float = 16.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Keep `size` old examples; where a step climbs the loss of `batch_size` of them, take that part out of it.

    The adapter is the LoRA of method `lora`. Memory: the examples, the same number for any number of tasks. Compute: one
    more forward and backward pass per step. Differs: a reservoir over all examples in place of a ring per class; steps
    are projected and not gradients, which for the paper's plain SGD is the same; one head answers over all classes, each
    learned against its own task's alone, where the paper names the task.

    >>> a_gem().rules[0].name
    'average-gradient-memory'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    rule = AverageGradientMemory(size=size, batch_size=batch_size)
    return Method(adapter, Linear(loss_over="own-task"), (rule,), train={"lr": 2e-3, "epochs": 5})
