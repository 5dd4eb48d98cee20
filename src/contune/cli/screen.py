"""Printing to standard output."""

import json
import sys
from io import TextIOWrapper
from typing import Any


def never_fail_to_print() -> None:
    """Let standard output and error write what their encoding cannot as `\\u2713` and the like.

    Old terminals, and logs under the C locale, are not UTF-8; a run must not end in an error for a sign in its last table.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_rich(*things: Any) -> None:
    """Print to standard output."""
    from rich.console import Console

    Console().print(*things)


def as_json_text(value: Any) -> str:
    """A value as one line of JSON in the signs that standard output can write."""
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    return json.dumps(value, ensure_ascii=not unicode)
