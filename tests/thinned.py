"""A sixth of a long list of cases by default, all of them with `-m slow`."""

from collections.abc import Iterable

import pytest

ONE_IN = 6
SHARES = [0, *(pytest.param(share, marks=pytest.mark.slow) for share in range(1, ONE_IN))]


def some(names: Iterable[object], times: int = 1) -> list[object]:
    """The cases for `parametrize`; one in six runs by default, or one in `times` as many."""
    every = ONE_IN * times
    return [name if at % every == 0 else pytest.param(name, marks=pytest.mark.slow) for at, name in enumerate(names)]
