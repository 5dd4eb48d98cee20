"""A few of many long cases by default, all of them with `-m slow`."""

from collections.abc import Iterable

import pytest

ONE_IN = 12
SHARES = [0, *(pytest.param(share, marks=pytest.mark.slow) for share in range(1, ONE_IN))]


def some(names: Iterable[object]) -> list[object]:
    """The cases for `parametrize`; one in twelve runs by default."""
    names = list(names)
    return only(names[::ONE_IN], names)


def only(by_default: Iterable[object], names: Iterable[object]) -> list[object]:
    """The cases for `parametrize`; those named first run by default."""
    chosen = list(by_default)
    return [name if name in chosen else pytest.param(*as_tuple(name), marks=pytest.mark.slow) for name in names]


def as_tuple(case: object) -> tuple[object, ...]:
    """The arguments of a case."""
    return case if isinstance(case, tuple) else (case,)
