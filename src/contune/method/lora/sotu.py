"""SoTU: sparse orthogonal parameter tuning, a sum of randomly thinned fine-tunings (arXiv 2411.02813)."""

from typing import Annotated, Literal

from contune.adapter.weights.sparse_deltas import SparseDeltas
from contune.contract.options import Layers
from contune.head.solved.merged import Merged
from contune.method.method import Method


def sotu(
    *,
    keep: Annotated[float, SparseDeltas] = 0.1,
    rescale: Annotated[bool, SparseDeltas] = False,
    classifier: Annotated[Literal["class-means", "ridge"], Merged] = "class-means",
    random_features: Annotated[int, Merged] = 0,
    strength: Annotated[float | None, Merged] = None,
    layers: Layers = "all",
    lr_scale: Annotated[float, SparseDeltas] = 0.01,
) -> Method:
    """Fine-tune the base model anew for every task, keep a random share of what changed, and sum what was kept.

    Few entries overlap, so deltas of different tasks are nearly orthogonal. Class means answer from the merged
    features; those of old classes were measured in the merged model of their time.

    Use it where tasks could as well be learned apart, since each starts from the base model.

    Memory: `keep` of the weights per task, the base once more, and classes x d.
    Compute: a full backward pass, and one forward pass over every task.
    Defaults: share, rates, epochs and whether to rescale are our choice; the paper's are not known to us.
    Differs:
    - The whole model is fine-tuned, where the paper also allows adapters.

    >>> sotu().adapter.name
    'sparse-deltas'
    """
    adapter = SparseDeltas(keep=keep, rescale=rescale, layers=layers, lr_scale=lr_scale)
    head = Merged(classifier=classifier, random_features=random_features, strength=strength)
    return Method(adapter, head, train={"lr": 1e-2, "epochs": 5})
