"""Walking the rooms: which parts there are, so that a new file is known without being registered anywhere."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any, get_args, get_type_hints

from contune.contract.parts import Adapter, Head, Part, Router, Rule

CATEGORIES: Mapping[str, tuple[str, type[Part]]] = {
    "adapter": ("contune.adapter", Adapter),
    "head": ("contune.head", Head),
    "rule": ("contune.rule", Rule),
    "router": ("contune.router", Router),
}
plugins: list[ModuleType] = []  # modules that the user named


@cache
def parts(room: str) -> dict[str, Callable[..., Any]]:
    """All parts of a room by name: final classes that have a name, and functions that return the room's class.

    Not among them is what takes another part's place by itself, as the language head does.
    """
    package, base = CATEGORIES[room]
    found: dict[str, Callable[..., Any]] = {}
    for module in (*modules_of(package), *plugins):
        for _, cls in public(module, inspect.isclass):
            if issubclass(cls, base) and cls.__dict__.get("name") and cls.selectable:
                found[cls.__dict__["name"]] = cls
        for name, function in public(module, inspect.isfunction):
            if returned(function) is base:
                found[name.replace("_", "-")] = function
    return dict(sorted(found.items()))


def room_of(kind: Any) -> str | None:
    """The room of the parts that an option of this type takes, or None where it takes plain values.

    >>> room_of(Adapter | None), room_of(int | None)
    ('adapter', None)
    """
    asked = (kind, *get_args(kind))
    return next((room for room, (_, base) in CATEGORIES.items() if base in asked), None)


def modules_of(package: str) -> Iterator[ModuleType]:
    """All modules of a package."""
    root = importlib.import_module(package)
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        yield importlib.import_module(info.name)


def public(module: ModuleType, kind: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
    """What a module itself defines of a kind, by its public names."""
    for name, value in inspect.getmembers(module, kind):
        if not name.startswith("_") and value.__module__ == module.__name__:
            yield name, value


def returned(function: Callable[..., Any]) -> Any:
    """The annotated type of what a function returns."""
    try:
        return get_type_hints(function).get("return")
    except NameError:
        return None
