"""DualPrompt: a general prefix, an expert prefix per task, and keys that choose among them (arXiv 2204.04799)."""

from typing import Annotated

from contune.adapter.prompt.prefix_per_task import PrefixPerTask
from contune.contract.options import PrefixLayers
from contune.head.linear import Linear
from contune.method.method import Method
from contune.router.keys import Keys


def dualprompt(
    *,
    general_length: Annotated[int, PrefixPerTask] = 5,
    expert_length: Annotated[int, PrefixPerTask] = 5,
    general_layers: Annotated[PrefixLayers, "official code"] = "first-two",
    expert_layers: Annotated[PrefixLayers, "official code"] = "third-to-fifth",
    pull: Annotated[float, Keys] = 1.0,
) -> Method:
    """Train a prefix that all tasks share, and a prefix and a key for each task; the nearest key's prefix answers.

    Finished experts and keys never change; the general prefix and the head do, and the loss over the task's own classes
    alone protects old head rows.

    Use it for images in new classes without old examples, where frozen features tell the tasks apart.

    Memory: 2 x length x d per layer, 15 thousand weights for the general prefix in ViT-B/16 and 23 thousand per task
    (92 thousand with `expert_length` 20), a key of d per task, and the head.
    Compute: a full backward pass; the query is computed once per example and kept, and with train.augment once more for
    every step; an answer takes one pass of the frozen model and one with prefixes.
    Defaults: the official code's for CIFAR-100; it takes `expert_length` 20 for ImageNet-R. Epochs, clipping and a
    head that starts at zero are the official code's; Adam at 5e-3 in batches of 32 is ours, there 0.03 times the batch
    over 256.
    Differs:
    - Every input chooses for itself, where the official code lets a batch vote (it does not for ImageNet-R).
    - The pool grows with the tasks, and keys that no task trained take no part in the choice.
    - A weight decay would move old head rows, and is off there and here.

    >>> dualprompt().router.name
    'keys'
    """
    adapter = PrefixPerTask(
        general_length=general_length,
        expert_length=expert_length,
        general_layers=general_layers,
        expert_layers=expert_layers,
    )
    train = {"optimizer": "adam", "lr": 5e-3, "epochs": 5}
    return Method(adapter, Linear(loss_over="own-task", start_spread=0.0), router=Keys(pull=pull), train=train)
