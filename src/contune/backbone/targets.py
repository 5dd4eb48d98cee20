"""Which layers an adapter sits in, and which linear maps of them it wraps: by shape and role, not by architecture."""

from collections.abc import Sequence

from contune.backbone.backbone import Backbone
from contune.backbone.linear import is_linear
from contune.errors import ConfigError

QUERY = ("query", "q_proj", "q_lin", "q", "to_q")
VALUE = ("value", "v_proj", "v_lin", "v", "to_v")
KEY = ("key", "k_proj", "k_lin", "k", "to_k")
FUSED = ("Wqkv", "c_attn", "qkv", "query_key_value", "in_proj")  # one matrix for query, key and value


def resolve_layers(layers: str | Sequence[int], depth: int) -> list[int]:
    """Layer indices, from below: all of them, the top half or quarter, or those listed (negative ones from the top).

    >>> resolve_layers("top-quarter", 12), resolve_layers([0, -1], 6)
    ([9, 10, 11], [0, 5])
    """
    named = {"all": depth, "top-half": -(-depth // 2), "top-quarter": -(-depth // 4)}
    if isinstance(layers, str):
        if layers not in named:
            raise ConfigError(f"layers is {layers!r}; give {', '.join(map(repr, named))} or a list of layer numbers")
        return list(range(depth - named[layers], depth))
    chosen = sorted({layer + depth if layer < 0 else layer for layer in layers})
    if not chosen or chosen[0] < 0 or chosen[-1] >= depth:
        raise ConfigError(
            f"layers is {list(layers)}; this model has layers 0 to {depth - 1}, give at least one of them"
        )
    return chosen


def target_modules(backbone: Backbone, targets: str | Sequence[str], layers: str | Sequence[int]) -> list[str]:
    """Full names of the modules to wrap, in the chosen layers.

    `targets`: `query-value` (LoRA's own choice, arXiv 2106.09685 section 7.1), `all-linear`, or last names of modules.
    """
    names = {id(module): name for name, module in backbone.model.named_modules()}
    linear = [
        names[id(module)]
        for index in resolve_layers(layers, backbone.depth)
        for module in backbone.layers[index].modules()
        if is_linear(module)
    ]
    if targets == "all-linear":
        return linear
    wanted = (
        (*QUERY, *VALUE, *FUSED)
        if targets == "query-value"
        else (targets,)
        if isinstance(targets, str)
        else tuple(targets)
    )
    found = [name for name in linear if name.rsplit(".", 1)[-1] in wanted]
    if not found:
        last = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ConfigError(
            f"targets is {targets!r}, which names no linear layer of {backbone.config.path}; "
            f"give 'query-value', 'all-linear' or some of {last}"
        )
    return found


def key_value_modules(backbone: Backbone, layers: str | Sequence[int]) -> list[str]:
    """Full names of the key and value projections in the chosen layers: where IA3 rescales attention."""
    return target_modules(backbone, [*KEY, *VALUE, *FUSED], layers)


def key_value_targets(targets: str | list[str]) -> str | list[str]:
    """`key-value` as the last names of key and value projections; any other targets as they are.

    A projection that makes queries, keys and values in one is wrapped whole.

    >>> key_value_targets("all-linear"), "k_proj" in key_value_targets("key-value")
    ('all-linear', True)
    """
    return [*KEY, *VALUE, *FUSED] if targets == "key-value" else targets
