"""Training the self-attention's own query, key and value weights (arXiv 2203.17269, section 5)."""

from contune.adapter.weights.subset import ParameterSubset
from contune.backbone.targets import FUSED, KEY, QUERY, VALUE
from contune.contract.parts import Adapter

PROJECTIONS = frozenset((*QUERY, *KEY, *VALUE, *FUSED))


def is_projection(name: str) -> bool:
    """Whether a parameter belongs to a projection to queries, keys or values, by the last name of its layer.

    >>> is_projection("layer.0.attention.query.bias"), is_projection("layer.0.attention.output.dense.weight")
    (True, False)
    """
    return name.rpartition(".")[0].rpartition(".")[2] in PROJECTIONS


def attention(*, layers: str | list[int] = "all", lr_scale: float = 0.1) -> Adapter:
    """The projections to queries, keys and values of the base model, at a tenth of the head's learning rate."""
    return ParameterSubset("attention", lambda name, _module: is_projection(name), layers, lr_scale)
