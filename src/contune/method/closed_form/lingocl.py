"""LingoCL: the names of the classes, read by a language model, are the classifier (arXiv 2403.16124)."""

from typing import Annotated

from contune.adapter.lora.peft_adapter import lora as lora_adapter
from contune.contract.options import Alpha, Layers, Rank, Targets
from contune.head.text_targets import TextTargets
from contune.method.method import Method


def lingocl(
    *,
    encoder: Annotated[str | None, TextTargets] = None,
    template: Annotated[str | None, TextTargets] = None,
    scale: Annotated[float, TextTargets] = 20.0,
    rank: Rank = 8,
    alpha_lora: Alpha = 16.0,
    targets: Targets = "query-value",
    layers: Layers = "all",
) -> Method:
    """Train a LoRA towards frozen text embeddings of the class names, in place of a classifier that would forget.

    Without `encoder`, texts are read by the base model itself and images are named to the packaged sentence encoder.

    Use it where class names mean something; what the encoder has read, the result profits from.

    Memory: one embedding per class, and the map between widths where they differ.
    Compute: as lora, and one text pass per class.
    Defaults: scale and template are ours, the paper's are not known to us; so are the LoRA, rate and epochs.
    Differs:
    - The paper adds its targets to eleven methods; here they are added to LoRA.
    - The paper takes CLIP's text encoder, which must be saved as a text model of its own (head option `feature:
      last-token`); its projection into CLIP's joint space is not applied.

    >>> lingocl().head.name
    'text-targets'
    """
    adapter = lora_adapter(rank=rank, alpha=alpha_lora, targets=targets, layers=layers)
    head = TextTargets(encoder=encoder, template=template, scale=scale)
    return Method(adapter, head, train={"lr": 2e-3, "epochs": 5})
