"""LingoCL: the names of the classes, read by a language model, are the classifier (arXiv 2403.16124)."""

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.head.text_targets import TextTargets
from contune.method.method import Method


def lingocl(
    *,
    encoder: str | None = None,
    template: str | None = None,
    scale: float = 20.0,
    rank: int = 8,
    alpha_lora: float = 16.0,
    targets: str | list[str] = "query-value",
    layers: str | list[int] = "all",
) -> Method:
    """Train a LoRA towards frozen text embeddings of the class names, in place of a classifier that would forget.

    Memory: one embedding per class, and the map between widths where they differ. Compute: as `lora`, and one text pass
    per class. Needs names that mean something. Without `encoder`, texts are read by the base model itself and images
    are named to the packaged sentence encoder; the paper takes CLIP's text encoder, which must be saved as a text model
    of its own (head option `feature: last-token`). What the encoder has read, the result profits from. Differs: the
    carrier is LoRA, where the paper adds its targets to eleven methods; scale and template are ours, the paper's are
    not known to us; the text half's projection into CLIP's joint space is not applied.

    >>> lingocl().head.name
    'text-targets'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    head = TextTargets(encoder=encoder, template=template, scale=scale)
    return Method(adapter, head, train={"lr": 2e-3, "epochs": 5})
