"""The streams that need no file and no network, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from contune.stream.builtin.digits import read_digits
from contune.stream.builtin.stdlib_docs import read_stdlib_docs
from contune.stream.read.rows import Split


@dataclass(frozen=True)
class Builtin:
    """A built-in stream: one sentence about it, its usual number of tasks, and how its rows and notes are made."""

    description: str
    tasks: int
    read: Callable[[], tuple[dict[str, Split], tuple[str, ...]]]


def _digits() -> tuple[dict[str, Split], tuple[str, ...]]:
    return read_digits(), ()


def _stdlib_docs() -> tuple[dict[str, Split], tuple[str, ...]]:
    splits, note = read_stdlib_docs()
    return splits, (note,)


BUILTIN_STREAMS: dict[str, Builtin] = {
    "digits": Builtin("scikit-learn's handwritten digits, 8x8 grey images, 10 classes", 5, _digits),
    "stdlib-docs": Builtin(
        "docstrings of Python's own standard library, labelled with their module, about 40 classes", 10, _stdlib_docs
    ),
}
