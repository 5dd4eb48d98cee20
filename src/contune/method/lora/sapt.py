"""SAPT: attention to the input mixes the LoRAs of all tasks, in training as in answering (arXiv 2401.08295)."""

from typing import Annotated

from contune.adapter.lora.shared_attention import SharedAttention
from contune.contract.options import Layers, Targets
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.replay.attentive_reflection import AttentiveReflection, Source


def sapt(
    *,
    rank: Annotated[int, SharedAttention] = 4,
    alpha: Annotated[float, SharedAttention] = 32.0,
    hidden: Annotated[int, SharedAttention] = 100,
    temperature: Annotated[float, SharedAttention] = 1.0,
    weight: Annotated[float, AttentiveReflection] = 0.5,
    source: Annotated[Source, AttentiveReflection] = "auto",
    size: Annotated[int, AttentiveReflection] = 64,
    attempts: Annotated[int, AttentiveReflection] = 128,
    top: Annotated[int, AttentiveReflection] = 20,
    targets: Targets = "query-value",
    layers: Layers = "all",
) -> Method:
    """Give each task a LoRA and a key, mix all LoRAs by attention to the input, and hold the attention of old tasks.

    Where answers are written, the inputs on which it is held are written by the model (`source: generated`); in
    streams of classes nothing can be written, and of `size` examples a task what the attention reads is kept (`source:
    kept`): their largest embedding values, not the examples.

    Use it for language models where tasks help one another, so that several LoRAs should answer together.

    Memory: rank (d_in + d_out) per wrapped matrix, a key and size x d per task.
    Compute: as lora with rank times tasks; in language each task is trained a second time, for the generator.
    Defaults: rank 4, alpha 32, query width 100, weight 0.5 as released for T5 on SuperNI (there 0.1 for the long
    sequence, and 1 and 2 for Llama); the paper's pseudo-samples are two in a hundred of a task's data. Rate 1e-3 for 10
    epochs, there 3e-4 for 100.
    Differs:
    - The generator is no LoRA of its own beside the base but a copy of the mixed adapter that goes on to train and is
      dropped when it has written, so one text per prompt must hold prompt and answer to count.
    - Padding does not count in the query; gradients go through old blocks.
    - The held attention is on all vectors of a task in every step.
    - The head of a class stream is not protected.

    >>> sapt().adapter.name
    'shared-attention'
    """
    adapter = SharedAttention(
        rank=rank, alpha=alpha, hidden=hidden, temperature=temperature, targets=targets, layers=layers
    )
    rule = AttentiveReflection(weight=weight, source=source, size=size, attempts=attempts, top=top)
    return Method(adapter, Linear(), (rule,), train={"lr": 1e-3, "epochs": 10})
