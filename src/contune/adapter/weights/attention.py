"""Training the self-attention's own query, key and value weights (arXiv 2203.17269, section 5)."""

from contune.adapter.weights.subset import ParameterSubset
from contune.backbone.targets import FUSED, KEY, QUERY, VALUE
from contune.contract.options import Layers, LrScale
from contune.contract.parts import Adapter

PROJECTIONS = frozenset((*QUERY, *KEY, *VALUE, *FUSED))


def is_projection(name: str) -> bool:
    """Whether a parameter belongs to a projection to queries, keys or values, by the last name of its layer.

    >>> is_projection("layer.0.attention.query.bias"), is_projection("layer.0.attention.output.dense.weight")
    (True, False)
    """
    return name.rpartition(".")[0].rpartition(".")[2] in PROJECTIONS


def attention(
    *,
    layers: Layers = "all",
    lr_scale: LrScale = 0.1,
) -> Adapter:
    """The projections to queries, keys and values of the base model, at a tenth of the head's learning rate.

    Use it where a little of the model itself should be trained, and no adapter put beside it.

    Memory: the model in place of the base, and the optimizer's two copies of these weights.
    Compute: a backward pass down to the lowest chosen layer.
    """
    return ParameterSubset("attention", lambda name, _module: is_projection(name), layers, lr_scale)
