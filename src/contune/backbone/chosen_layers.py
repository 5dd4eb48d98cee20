"""Which layers of the backbone an adapter sits in."""

from collections.abc import Sequence

from contune.errors import ConfigError


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
