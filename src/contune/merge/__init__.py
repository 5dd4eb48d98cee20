"""What one does with models after training: sums, means, elections, mixtures and grafts of their weights."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contune.merge.adapters.adapters import merge_adapters as merge_adapters
    from contune.merge.adapters.adapters import transfer_adapter as transfer_adapter
    from contune.merge.models.checkpoints import graft as graft
    from contune.merge.models.checkpoints import merge_checkpoints as merge_checkpoints
    from contune.merge.models.checkpoints import transfer as transfer
    from contune.merge.models.recipe import Recipe as Recipe
    from contune.merge.smile.folder import load_smile as load_smile
    from contune.merge.smile.folder import make_smile as make_smile

_HOMES = {
    "Recipe": "models.recipe",
    "graft": "models.checkpoints",
    "load_smile": "smile.folder",
    "make_smile": "smile.folder",
    "merge_adapters": "adapters.adapters",
    "merge_checkpoints": "models.checkpoints",
    "transfer": "models.checkpoints",
    "transfer_adapter": "adapters.adapters",
}
__all__ = [
    "Recipe",
    "graft",
    "load_smile",
    "make_smile",
    "merge_adapters",
    "merge_checkpoints",
    "transfer",
    "transfer_adapter",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command line reads this package and must stay quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'contune.merge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"contune.merge.{_HOMES[name]}"), name)
