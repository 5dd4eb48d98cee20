"""Sentences with which several rules refuse an adapter that leaves them nothing to do."""

from contune.adapter.lora.per_task import LoraPerTask
from contune.contract.parts import Adapter


def refuse_without_lasting(rule: str, adapter: Adapter, does: str, instead: str = "") -> str | None:
    """For rules about tensors that live through several tasks; `does` says what the rule does with them.

    >>> from contune.adapter.lora.per_task import LoraPerTask
    >>> refuse_without_lasting("l2", LoraPerTask(), "anchors tensors")  # doctest: +ELLIPSIS
    "rule 'l2' anchors tensors, but adapter 'lora-per-task' starts fresh ones for every task and leaves the old as they ..."
    """
    if not adapter.per_task_parameters and not (adapter.modular and adapter.expands):
        return None
    return (
        f"rule {rule!r} {does}, but adapter {adapter.name!r} starts fresh ones for every task and leaves the old as they "
        f"are; set adapter: lora{instead}"
    )


def refuse_without_lora_per_task(rule: str, adapter: Adapter) -> str | None:
    """For rules that compare the update of a task with those of earlier ones."""
    if isinstance(adapter, LoraPerTask):
        return None
    return (
        f"rule {rule!r} compares the LoRAs of different tasks, but adapter {adapter.name!r} has none per task; set adapter: "
        "lora-per-task"
    )
