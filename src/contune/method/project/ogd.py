"""OGD: steps orthogonal to the gradients of old examples' scores (arXiv 1910.07104)."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.project.orthogonal_gradients import OrthogonalGradients


def ogd(
    *,
    size: int = 200,
    rank: int = 8,
    alpha_lora: float = 16.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Keep `size` gradients of old answers for every task, and step only where they do not point; no example is kept.

    The variant of the paper that keeps the right answer's score alone (OGD-GTL), with its 200 gradients a task. The
    adapter is the LoRA of method `lora`: of larger ones the gradients would not fit. Memory: `size` times the trained
    tensors for every task, 0.25 GB a task in ViT-B/16. Compute: two products with all of it per step.

    Differs: steps are projected and not gradients, which for the paper's plain SGD is the same; directions are kept in
    the order they are drawn, and one that lies in the span of others is not kept at all; each class is learned against
    its own task's, and one head answers over all, where the paper names the task.

    >>> ogd().rules[0].name
    'orthogonal-gradients'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    return Method(
        adapter, Linear(loss_over="own-task"), (OrthogonalGradients(size=size),), train={"lr": 2e-3, "epochs": 5}
    )
