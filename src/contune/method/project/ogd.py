"""OGD: steps orthogonal to the gradients of old examples' scores (arXiv 1910.07104)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.project.orthogonal_gradients import OrthogonalGradients


def ogd(
    *,
    size: Annotated[int, OrthogonalGradients] = 200,
    rank: Rank = 8,
    alpha_lora: Alpha = 16.0,
    targets: Targets = "query-value",
    layers: Layers = "all",
) -> Method:
    """Keep `size` gradients of old answers for every task, and step only where they do not point; no example is kept.

    The variant of the paper that keeps the right answer's score alone (OGD-GTL).

    Use it for few tasks with a small adapter: of larger ones the gradients would not fit.

    Memory: `size` times the trained tensors for every task, 0.25 GB a task in ViT-B/16.
    Compute: two products with all of it per step.
    Defaults: 200 gradients a task as in the paper; the LoRA, rate and epochs are ours.
    Differs:
    - What is trained is the LoRA of method lora.
    - Steps are projected and not gradients, which for the paper's plain SGD is the same.
    - Directions are kept in the order they are drawn, and one that lies in the span of others is not kept at all.
    - Each class is learned against its own task's, and one head answers over all, where the paper names the task.

    >>> ogd().rules[0].name
    'orthogonal-gradients'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    return Method(
        adapter, Linear(loss_over="own-task"), (OrthogonalGradients(size=size),), train={"lr": 2e-3, "epochs": 5}
    )
