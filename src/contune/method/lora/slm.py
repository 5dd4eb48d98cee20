"""SLM: low-rank increments that each example retrieves by frozen keys (arXiv 2404.07470)."""

from typing import Annotated

from contune.adapter.lora.retrieved_increments import RetrievedIncrements
from contune.contract.options import Layers
from contune.head.linear import Linear
from contune.method.method import Method


def slm(
    *,
    keys_per_task: Annotated[int, RetrievedIncrements] = 4,
    top: Annotated[int, RetrievedIncrements] = 4,
    groups: Annotated[int, RetrievedIncrements] = 6,
    rank: Annotated[int, RetrievedIncrements] = 12,
    key_top: Annotated[int, RetrievedIncrements] = 2,
    key_dropout: Annotated[float, RetrievedIncrements] = 0.25,
    key_steps: Annotated[int, RetrievedIncrements] = 300,
    key_lr: Annotated[float, RetrievedIncrements] = 1e-2,
    targets: Annotated[str | list[str], RetrievedIncrements] = "attention-output",
    layers: Layers = "all",
) -> Method:
    """Add low-rank increments to the attention's output, chosen for each example from a pool that grows with the tasks.

    Keys are trained on the frozen features of a task before its increments, then frozen; similarities weigh the `top`
    nearest.

    Use it where nothing may be replayed, no task is named, and frozen features tell the tasks apart.

    Memory: `keys_per_task` increments and keys per task, 0.9 million weights in BERT-base.
    Compute: a pass of the frozen model over every example, kept.
    Defaults: sizes of the released code for BERT; its learning rates are 2e-4 to 1e-3. `key_steps`, `key_lr` and the
    epochs are ours.
    Differs:
    - Queries are the model's own frozen features, the paper's those of a sentence encoder (MPNet), whose width the
      groups divide; here zeros fill the last group.
    - Each example retrieves for itself, where the released code averages over the batch.
    - Similarities below 0 weigh nothing, where they could make weights negative or explode.
    - The pool grows and needs no number of tasks.
    - Keys take a fixed number of steps at a rate of `key_lr`, not 3 epochs at 1e-3, since few examples would leave them
      where they started.
    - Earlier increments are no parameters in training, where the released code copies them back before each step.
    - One head for all classes, trained on the task's own; the released one is named the task.
    - No penalty keeps keys of tasks apart, as released.

    >>> slm().adapter.name
    'retrieved-increments'
    """
    adapter = RetrievedIncrements(
        keys_per_task=keys_per_task,
        top=top,
        groups=groups,
        rank=rank,
        key_top=key_top,
        key_dropout=key_dropout,
        key_steps=key_steps,
        key_lr=key_lr,
        targets=targets,
        layers=layers,
    )
    return Method(adapter, Linear(loss_over="own-task"), train={"lr": 3e-4, "epochs": 5})
