"""Parts and recipes as attributes: `contune.adapters.lora(rank=4)`, named as in a configuration with underscores."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, final

from contune.errors import did_you_mean
from contune.method.catalog import parts, recipes


@final
class Namespace:
    """All parts of a category, or all recipes, by name."""

    def __init__(self, category: str) -> None:
        self._category = category

    def _found(self) -> Mapping[str, Callable[..., Any]]:
        known = recipes() if self._category == "method" else parts(self._category)
        return {attribute(name): make for name, make in known.items()}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found = self._found()
        if name not in found:
            raise AttributeError(f"there is no {self._category} {name!r}; {did_you_mean(name, found)}")
        return found[name]

    def __dir__(self) -> list[str]:
        return sorted(self._found())

    def __repr__(self) -> str:
        return f"{self._category}s: {', '.join(sorted(self._found()))}"


def attribute(name: str) -> str:
    """A name of the configuration as one of Python.

    >>> attribute("lora-per-task"), attribute("der++")
    ('lora_per_task', 'der_plus_plus')
    """
    return name.replace("++", "-plus-plus").replace("-", "_")


@cache
def namespace(category: str) -> Namespace:
    """The namespace of a category: adapter, head, rule, router, or method."""
    return Namespace(category)
