"""ACIL: analytic class-incremental learning (arXiv 2205.14922), with analytic unlearning (ACU, arXiv 2505.12239)."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.adapter.none import NoAdapter
from contune.head.ridge import Ridge
from contune.method.method import Method


def acil(*, expansion: int = 2048, gamma: float = 0.1, first_task: bool = False, rank: int = 8) -> Method:
    """Widen frozen features to relu(W f(x)) once and solve ridge regression on all that was ever seen, exactly.

    Kept are the sums G and Q in float64: (G + gamma I)^-1 Q is what the paper's recursion arrives at, whatever the split
    and order, and `Learner.forget` subtracts examples again with only them at hand. Memory: expansion^2 + expansion x
    classes in float64 (paper: 8192 for CIFAR, 16384 for ImageNet; 8192 takes 537 MB). Compute: one forward pass over
    every example, one Cholesky a task, where the recursion inverts a matrix per batch. W is uniform in +-1/sqrt(d)
    without bias; gamma 0.1 is what the released runs use. `first_task` trains a LoRA on the first task and rests it
    then (paper: a ResNet trained from scratch); unlearning does not reach into it.

    >>> acil().head.name
    'ridge'
    """
    adapter = lora_adapter(rank=rank) if first_task else NoAdapter()
    head = Ridge(random_features=expansion, strength=gamma, projection="kaiming-uniform")
    return Method(adapter, head, adapt="first-task", train={"lr": 2e-3, "epochs": 5 if first_task else 0})
