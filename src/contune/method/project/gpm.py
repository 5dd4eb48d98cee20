"""GPM: full fine-tuning whose steps are orthogonal to the inputs of finished tasks (arXiv 2103.09762)."""

from typing import Annotated

from contune.adapter.weights.subset import full
from contune.contract.options import Layers
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.project.gradient_projection import GradientProjection


def gpm(
    *,
    threshold: Annotated[float, GradientProjection] = 0.97,
    growth: Annotated[float, GradientProjection] = 0.1,
    layers: Layers = "all",
    lr_scale: Annotated[float, full] = 0.01,
) -> Method:
    """Train every linear weight, but only in directions that the inputs of finished tasks do not have.

    Use it where old answers must hardly move and no example may be kept; a long stream leaves ever less to learn with.

    Memory: at most d_in^2 / 2 values per linear layer (queries, keys and values share theirs), the model in place of
    the base, and d_in^2 values in float64 per layer at the end of a task.
    Compute: a full backward pass, two products with the basis per layer and step, one more pass over each task.
    Defaults: threshold 0.97 as in the paper for CIFAR-100; `growth`, rates and epochs are ours, as this library's for
    full fine-tuning.
    Differs:
    - A pretrained model at a slow rate in place of a small network from scratch.
    - Moves are projected, which for the paper's plain SGD is the same.
    - All examples and not a sample give the subspaces.
    - The threshold approaches 1 instead of growing in a line.
    - A subspace has the fewest directions that reach the threshold; the released code keeps one fewer after the first task.
    - Norms, biases, embeddings and convolutions learn in the first task only.
    - The paper names the task at prediction; here the head answers over all classes, each learned against its own
      task's alone.

    >>> gpm().rules[0].name
    'gradient-projection'
    """
    rule = GradientProjection(threshold=threshold, growth=growth)
    adapter = full(layers=layers, lr_scale=lr_scale)
    return Method(adapter, Linear(loss_over="own-task"), (rule,), train={"lr": 1e-2, "epochs": 5})
