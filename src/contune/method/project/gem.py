"""GEM: steps that raise no old task's loss, with a memory of each task's examples (arXiv 1706.08840)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.project.gradient_memory import GradientMemory


def gem(
    *,
    size: Annotated[int, GradientMemory] = 256,
    batch_size: Annotated[int | None, GradientMemory] = 32,
    margin: Annotated[float, GradientMemory] = 0.5,
    rank: Rank = 8,
    alpha_lora: Alpha = 16.0,
    targets: Targets = "query-value",
    layers: Layers = "all",
) -> Method:
    """Keep `size` examples of every task, and bend each step until it harms none of these memories.

    Use it where old examples may be looked at and tasks are few; a-gem costs the same for any number of them.

    Memory: the examples, growing with the tasks.
    Compute: one more forward and backward pass per old task and step, over `batch_size` of its examples.
    Defaults: 256 examples a task and margin 0.5 are the paper's (section 4); `batch_size`, the LoRA and the loop are
    ours.
    Differs:
    - What is trained is the LoRA of method lora, whose gradients are small enough to keep one per old task at hand;
      they are those of its factors: the geometry is that of (A, B), not of their product.
    - The paper takes all examples of a task at each step, as `batch_size: null` does.
    - The kept examples are drawn by the seed, not the task's last.
    - Steps are bent and not gradients, which for the paper's plain SGD is the same.
    - One head answers over all classes, each learned against its own task's alone, where the paper names the task.

    >>> gem().rules[0].name
    'gradient-memory'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    rule = GradientMemory(size=size, batch_size=batch_size, margin=margin)
    return Method(adapter, Linear(loss_over="own-task"), (rule,), train={"lr": 2e-3, "epochs": 5})
