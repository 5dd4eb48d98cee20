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


RENAMED = {
    "accumulated": "ema-adapter",
    "dynamic-average": "adaptive-ema",
    "findings": "diagnostics",
    "half": "half-fine-tuning",
    "kept-rows": "frozen-rows",
    "key-entries": "key-element-penalty",
    "linear-weights": "linear-layers",
    "lora-decoupled": "sd-lora",
    "lora-designed": "inflora-basis",
    "lora-sets": "lora-experts",
    "output-directions": "orthogonal-gradients",
    "probes": "retention_sets",
    "resting": "freezable",
    "retained": "retention",
    "self-regularisation": "overlap-penalty",
    "slow-copy": "ema-teacher",
    "spare": "reserved_rows",
    "subnetwork": "external-mask",
    "warm-up": "freeze-backbone-after",
}  # earlier names of parts, options and keys, and what they are called now


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """A half sentence that names the nearest allowed name, or lists them all where none is near.

    >>> did_you_mean("taks", ["tasks", "kind"])
    "did you mean 'tasks'?"
    >>> did_you_mean("zzz", ["kind", "tasks"])
    "allowed are 'kind', 'tasks'"
    >>> did_you_mean("slow-copy", ["ema-teacher", "replay"])
    "it is now called 'ema-teacher'"
    """
    names = sorted(allowed)
    if RENAMED.get(given) in names:
        return f"it is now called {RENAMED[given]!r}"
    near = get_close_matches(given, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return "allowed are " + ", ".join(repr(name) for name in names)
