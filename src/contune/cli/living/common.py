"""What commands about a living model share: its folder, who watches, how a version is told."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contune.cli.options import Plugin
from contune.cli.plugins import load_plugins

if TYPE_CHECKING:
    from contune.living.model import LivingModel

Model = Annotated[Path, typer.Argument(metavar="FOLDER", help="The living model's folder, made by contune create.")]
Reason = Annotated[str, typer.Option(help="Why; it stands in the history.")]
Version = Annotated[str, typer.Argument(help="A version: its number, its name, or the beginning of its id.")]


def opened(folder: Path, plugin: Plugin, *, quiet: bool = False, watch: str = "") -> tuple["LivingModel", Any]:
    """The living model, and a block in which progress is drawn (`watch` is what stands before the bar)."""
    load_plugins(plugin)
    from contune.living.model import LivingModel

    if quiet or not watch:
        return LivingModel.open(folder, say=note if not quiet else silent), nullcontext()
    from contune.run.terminal import TerminalObserver, stderr_console

    observer = TerminalObserver(stderr_console(quiet), watch)
    return LivingModel.open(folder, say=note, observer=observer), observer.shown()


def note(sentence: str) -> None:
    """Say something that is no result."""
    typer.echo(f"note: {sentence}", err=True)


def silent(_sentence: str) -> None:
    """Say nothing."""


def is_living(folder: Path) -> bool:
    """Whether a folder is a living model and no run."""
    return (folder / "refs" / "live").is_file()
