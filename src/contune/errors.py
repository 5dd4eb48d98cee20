"""Every error a user can meet, each a sentence that says what was given, what is allowed and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class ContuneError(Exception):
    """Base of all errors that contune raises on purpose; the command line prints them without a traceback."""

    exit_code = 1


class ConfigError(ContuneError):
    """A key or value of the configuration is wrong; nothing was computed."""

    exit_code = 2


class DataError(ContuneError):
    """A data file, row or column is wrong; nothing was computed."""

    exit_code = 3


class CombinationError(ConfigError):
    """Parts that each work alone do not make sense together."""


class RunDirectoryError(ContuneError):
    """A run directory exists already, is in use, is damaged or is not a run directory."""

    exit_code = 4


class NumericError(ContuneError):
    """The loss became infinite or not a number; the step was not taken."""

    exit_code = 5


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """A half sentence that names the nearest allowed name, or lists them all where none is near.

    >>> did_you_mean("taks", ["tasks", "kind"])
    "did you mean 'tasks'?"
    >>> did_you_mean("zzz", ["kind", "tasks"])
    "allowed are 'kind', 'tasks'"
    """
    names = sorted(allowed)
    near = get_close_matches(given, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return "allowed are " + ", ".join(repr(name) for name in names)
