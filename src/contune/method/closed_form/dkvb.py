"""DKVB: a discrete key-value bottleneck on frozen features (arXiv 2207.11240)."""

from typing import Annotated, Literal

from contune.adapter.none import NoAdapter
from contune.head.solved.key_value import KeyValue
from contune.method.method import Method


def dkvb(
    *,
    books: Annotated[int, KeyValue] = 64,
    pairs: Annotated[int, KeyValue] = 512,
    key_size: Annotated[int, KeyValue] = 8,
    keys: Annotated[Literal["gaussian", "k-means"], KeyValue] = "gaussian",
) -> Method:
    """Look up every frozen feature in many small codebooks and train only the values that were found.

    What one example changes, another with other keys never sees. Values have one number per class and grow with the
    classes; softmax of their mean is the answer.

    Use it on frozen features that separate the classes already, with plain SGD without momentum, weight decay or
    clipping, which alone leaves values that were not found as they are; the rate is large because the mean over
    codebooks makes gradients small.

    Memory: books x pairs x (key_size + classes); the paper has 256 codebooks of 4096 pairs.
    Compute: features once per example, then a search for the nearest keys.
    Defaults: ours, all of them, for small machines: the paper has 256 codebooks of 4096 pairs.
    Differs:
    - The paper learns its keys by vector quantisation on another data set; here they are random around the first task,
      or its k-means.
    - The pooled feature is quantised, not every position.

    >>> dkvb().head.name
    'key-value'
    """
    train = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "clip": None, "lr": 10.0, "epochs": 10}
    return Method(NoAdapter(), KeyValue(books=books, pairs=pairs, key_size=key_size, keys=keys), train=train)
