"""CUBER: gradient projection that changes old tasks where the new one helps them (arXiv 2211.00789)."""

from typing import Annotated

from contune.adapter.weights.subset import full
from contune.contract.options import Layers
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.project.cuber import Cuber


def cuber(
    *,
    threshold: Annotated[float, Cuber, "as GPM"] = 0.97,
    growth: Annotated[float, Cuber] = 0.1,
    overlap: Annotated[float, Cuber] = 0.5,
    agreement: Annotated[float, Cuber] = 0.0,
    strength: Annotated[float, Cuber] = 1.0,
    examples: Annotated[int, Cuber] = 512,
    layers: Layers = "all",
    lr_scale: Annotated[float, full] = 0.01,
) -> Method:
    """Train every linear weight off the inputs of those old tasks that its first gradient would harm.

    Use it in place of gpm where later tasks should be able to help earlier ones.

    Memory: a gradient as large as the linear weights for every task, and per task and layer at most d_in^2 / 2 values
    (queries, keys and values share theirs): 0.35 GB of gradients a task in ViT-B/16, so name few `layers` in long
    streams.
    Compute: a full backward pass, two products with a basis per layer and step, two more passes over each task.
    Defaults: the threshold is GPM's; `growth`, `overlap`, `agreement`, `strength`, `examples`, rates and epochs are
    ours. Gains on old tasks are reported for small networks with a head per task.
    Differs:
    - A pretrained model at a slow rate in place of a small network from scratch.
    - One head over all classes, each learned against its own task's alone, where the paper names the task.
    - No scale matrices for forward transfer, which need the task's name as well; what is left is GPM with the choice of
      tasks that may change.

    >>> cuber().rules[0].name
    'cuber'
    """
    rule = Cuber(
        threshold=threshold,
        growth=growth,
        overlap=overlap,
        agreement=agreement,
        strength=strength,
        examples=examples,
    )
    adapter = full(layers=layers, lr_scale=lr_scale)
    return Method(adapter, Linear(loss_over="own-task"), (rule,), train={"lr": 1e-2, "epochs": 5})
