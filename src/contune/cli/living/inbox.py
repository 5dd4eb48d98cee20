"""The command that learns what lies in a folder: `watch`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from contune.cli.living.common import Model, note, opened
from contune.cli.options import Plugin, Quiet
from contune.errors import ConfigError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def watch(
    folder: Model,
    inbox: Annotated[Path, typer.Argument(help="A folder of CSV, JSONL or Parquet files with new examples.")],
    every: Annotated[str, typer.Option(help="How often to look: 30s, 10m, 1h, 1d.")] = "1h",
    rows: Annotated[int, typer.Option(min=1, help="Learn only when at least so many new examples lie there.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="Look once and end, as for cron.")] = False,
    quiet: Quiet = False,
    plugin: Plugin = None,
) -> None:
    """Learn every new file of a folder as an update of its own, in the order of their names, each once.

    Example: contune watch support/ inbox/ --every 1h --rows 500; from cron: contune watch support/ inbox/ --once

    A file is known by its content; one that cannot be read is named and passed over. Killed at any time, it goes on.
    """
    model, _ = opened(folder, plugin, quiet=quiet)
    from contune.living.watching import watch as look

    for taken in look(model, inbox, every=None if once else seconds(every), rows=rows, say=note):
        typer.echo(
            f"{taken.file}: " + ("refused" if taken.version is None else f"version {taken.version}, {taken.outcome}")
        )


def seconds(text: str) -> float:
    """A time such as 30s, 10m, 1h or 1d.

    >>> seconds("10m")
    600.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None or not float(found[1]):
        raise ConfigError(f"--every is {text!r}; write a number and s, m, h or d, such as 10m")
    return float(found[1]) * UNITS[found[2]]
