"""SoTU: sparse orthogonal parameter tuning, a sum of randomly thinned fine-tunings (arXiv 2411.02813)."""

from typing import Literal

from contune.adapter.weights.sparse_deltas import SparseDeltas
from contune.head.merged import Merged
from contune.method.method import Method


def sotu(
    *,
    keep: float = 0.1,
    rescale: bool = False,
    classifier: Literal["class-means", "ridge"] = "class-means",
    random_features: int = 0,
    strength: float | None = None,
    layers: str | list[int] = "all",
    lr_scale: float = 0.01,
) -> Method:
    """Fine-tune the base model anew for every task, keep a random share of what changed, and sum what was kept.

    Few entries overlap, so deltas of different tasks are nearly orthogonal. Class means answer from the merged features;
    those of old classes were measured in the merged model of their time. Memory: `keep` of the weights per task, the
    base once more, and classes x d. Compute: a full backward pass, and one forward pass over every task. Share, rates
    and whether to rescale by 1 / keep (here not, unless asked) are our choice; the paper's are not known to us. Differs:
    the whole model is fine-tuned, where the paper also allows adapters.

    >>> sotu().adapter.name
    'sparse-deltas'
    """
    adapter = SparseDeltas(keep=keep, rescale=rescale, layers=layers, lr_scale=lr_scale)
    head = Merged(classifier=classifier, random_features=random_features, strength=strength)
    return Method(adapter, head, train={"lr": 1e-2, "epochs": 5})
