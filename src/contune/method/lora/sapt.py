"""SAPT: attention to the input mixes the LoRAs of all tasks, in training as in answering (arXiv 2401.08295)."""

from contune.adapter.lora.shared_attention import SharedAttention
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.replay.attentive_reflection import AttentiveReflection, Source


def sapt(
    *,
    rank: int = 4,
    alpha: float = 32.0,
    hidden: int = 100,
    temperature: float = 1.0,
    weight: float = 0.5,
    source: Source = "auto",
    size: int = 64,
    attempts: int = 128,
    top: int = 20,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Give each task a LoRA and a key, mix all LoRAs by attention to the input, and hold the attention of old tasks.

    In streams of kind language the inputs on which it is held are written by the model (`source: generated`); in streams
    of classes nothing can be written, and of `size` examples a task what the attention reads is kept (`source: kept`):
    their largest embedding values, not the examples. Memory: rank (d_in + d_out) per wrapped matrix, a key and size x d
    per task. Compute: as `lora` with rank times tasks; in language each task is trained a second time, for the generator.
    Defaults: rank 4, alpha 32, query width 100, weight 0.5 as released for T5 on SuperNI (there 0.1 for the long sequence,
    and 1 and 2 for Llama); size, attempts and top are ours, the paper's pseudo-samples are two in a hundred of a task's
    data.

    Differs: the generator is no LoRA of its own beside the base but a copy of the mixed adapter that goes on to train and
    is dropped when it has written, so one text per prompt must hold prompt and answer to count; padding does not count in
    the query; gradients go through old blocks; the held attention is on all vectors of a task in every step. In a
    model with an encoder, LoRAs sit in the decoder, as those of every adapter here. The head of a class stream is not
    protected. Rate 1e-3 for 10 epochs, there 3e-4 for 100.

    >>> sapt().adapter.name
    'shared-attention'
    """
    adapter = SharedAttention(
        rank=rank, alpha=alpha, hidden=hidden, temperature=temperature, targets=targets, layers=layers
    )
    rule = AttentiveReflection(weight=weight, source=source, size=size, attempts=attempts, top=top)
    return Method(adapter, Linear(), (rule,), train={"lr": 1e-3, "epochs": 10})
