"""Recipes as checks take them: with their defaults, but for sizes that cost minutes and say nothing in a tiny model."""

from typing import Any

from contune.method.catalog import build_method, option_defaults, recipes
from contune.method.method import Method

MOST = {"random_features": 500, "expansion": 500}  # a head with 10,000 solves a system of 0.8 GB in every task


def check_options(name: str) -> dict[str, Any]:
    """Smaller sizes for a recipe, where it has such an option that is larger by default, or null.

    >>> check_options("ranpac"), check_options("nmc")
    ({'random_features': 500}, {})
    """
    usual = option_defaults(recipes()[name]) if name in recipes() else {}
    return {option: most for option, most in MOST.items() if larger(usual.get(option, 0), most)}


def larger(value: Any, most: int) -> bool:
    """Whether an option's value is more than so many; null is chosen by the recipe, so it may be."""
    return value is None or (isinstance(value, int) and value > most)


def checked_method(name: str, **options: Any) -> Method:
    """A recipe with these options, and small sizes beside them."""
    return build_method(name, {**check_options(name), **options})
