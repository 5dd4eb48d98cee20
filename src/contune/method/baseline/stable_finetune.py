"""Full fine-tuning made stable by depth: layer-wise rates, frozen lower layers, new top layers (arXiv 2112.07869)."""

from typing import Annotated, Any

from contune.adapter.weights.subset import full
from contune.head.linear import Linear
from contune.method.method import Method

LOOP: dict[str, Any] = {"lr": 1e-2, "epochs": 5, "schedule": "cosine", "warmup": 0.1}


def stable_finetune(
    *,
    decay: Annotated[float, full, "paper, of 0.8 and 0.9"] = 0.9,
    frozen: Annotated[int | None, full] = None,
    reset: Annotated[int, full] = 0,
    lr_scale: Annotated[float, full] = 0.01,
) -> Method:
    """Train every weight on each task in turn, the lower a layer lies the more slowly; the head at the full rate.

    The layer l of L, counted from 0 at the bottom, learns at lr_scale x decay^(L - l) times the head's rate, the
    embeddings at decay^(L + 1) and a final norm at decay^0; its norms and biases as the layer. Frozen layers rest from
    the first task on. Top layers that start anew have matrices of spread 0.02, biases 0 and norms 1, and are always
    trained.

    Use it where fine-tuning is unstable from seed to seed: the paper finds freezing best for models of BERT-base's size
    (half of the layers), decay for larger ones, and new top layers for the smallest data.

    Memory: the optimizer's two copies of what trains; the states below frozen layers are cached.
    Compute: a full backward pass down to the lowest layer that trains.
    Defaults: decay 0.9 of the paper's 0.8 and 0.9, its warm-up over a tenth of the steps; Adam is bias-corrected as it
    is; rates and epochs are ours.
    Differs:
    - The paper learns one task.
    - The rate falls as half a cosine, there linearly.
    - The pooler plays no part here; gains of layer scale keep their values in new layers.
    - Weight decay is off, and where it is set it is put on norms and biases too.
    - Tied embeddings count as embeddings. Models with an encoder and a decoder are refused.

    >>> stable_finetune(decay=1.0).adapter.name
    'full'
    """
    return Method(full(lr_scale=lr_scale, decay=decay, frozen=frozen, reset=reset), Linear(), train=LOOP)
