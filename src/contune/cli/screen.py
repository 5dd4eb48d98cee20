"""Printing to standard output."""

from typing import Any


def print_rich(*things: Any) -> None:
    """Print to standard output."""
    from rich.console import Console

    Console().print(*things)
