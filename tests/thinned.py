"""A third of a long list of cases by default, all of them with `-m slow`."""

from collections.abc import Iterable

import pytest


def thirds(names: Iterable[str]) -> list[object]:
    """The cases for `parametrize`; every third runs by default."""
    return [name if at % 3 == 0 else pytest.param(name, marks=pytest.mark.slow) for at, name in enumerate(names)]
