"""ACIL: analytic class-incremental learning (arXiv 2205.14922), with analytic unlearning (ACU, arXiv 2505.12239)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.adapter.none import NoAdapter
from contune.head.solved.ridge import Ridge
from contune.method.method import Method
from contune.method.options import of


def acil(
    *,
    expansion: Annotated[int, of(Ridge, "random_features"), "ours; paper: 8192 and more"] = 2048,
    gamma: Annotated[float | None, "ridge added to the sums, from 0; null: searched on a fifth of each task"] = None,
    first_task: Annotated[bool, "train a LoRA on the first task, which rests from then on"] = False,
    rank: Annotated[int, "rank of that LoRA, from 1"] = 8,
) -> Method:
    """Widen frozen features to relu(W f(x)) once and solve ridge regression on all that was ever seen, exactly.

    Kept are the sums G and Q in float64: (G + gamma I)^-1 Q is what the paper's recursion arrives at, whatever the
    split and order, and `Learner.forget` subtracts examples again with only them at hand (ACU). W is uniform in
    +-1/sqrt(d) without bias.

    With about as many examples as `expansion` a small gamma fits their noise (accuracy falls to a half and less, and comes
    back with more of them), so by default each task searches gamma as RanPAC does, and the last task's is in force.

    Use it where examples must be unlearned exactly, and with a number as gamma where the result may depend on neither
    order nor split of the data; unlearning does not reach into a LoRA of the first task.

    Memory: expansion^2 + expansion x classes in float64; 8192 takes 537 MB.
    Compute: one forward pass over every example, one Cholesky a task.
    Defaults: gamma by RanPAC's search, the released runs have 0.1; `expansion` 2048 is ours, for small machines, the
    paper expands to 8192 for CIFAR and 16384 for ImageNet. Rate and epochs of the LoRA are ours.
    Differs:
    - One Cholesky a task, where the recursion inverts a matrix per batch.
    - With `first_task` a LoRA is trained on the first task; the paper trains a ResNet from scratch.

    >>> acil().head.name
    'ridge'
    """
    adapter = lora_adapter(rank=rank) if first_task else NoAdapter()
    head = Ridge(random_features=expansion, strength=gamma, projection="kaiming-uniform")
    return Method(adapter, head, adapt="first-task", train={"lr": 2e-3, "epochs": 5 if first_task else 0})
