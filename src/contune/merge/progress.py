"""A bar on the terminal while a merge goes through its tensors."""

import sys
from collections.abc import Callable, Iterable, Iterator

Watch = Callable[[Iterable[str]], Iterable[str]]


def progress(title: str, show: bool) -> Watch:
    """Gives a function that walks through names and draws a bar on standard error, where that is a terminal.

    >>> list(progress("merging", show=False)(["a", "b"]))
    ['a', 'b']
    """

    def watch(names: Iterable[str]) -> Iterator[str]:
        from rich.console import Console
        from rich.progress import track

        console = Console(file=sys.stderr)
        quiet = not (show and console.is_terminal)
        yield from track(list(names), title, console=console, transient=True, disable=quiet)

    return watch
