"""Commands that look at a living model: `history`, `diff` and `verify`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from contune.cli.living.common import Model, Version, opened
from contune.cli.options import AsJson, Plugin
from contune.cli.screen import as_json_text, print_rich

if TYPE_CHECKING:
    from contune.living.history import Difference, Row


def history(folder: Model, as_json: AsJson = False, plugin: Plugin = None) -> None:
    """List all versions: parent, data, what the gate said, gain, forgetting, who, when it answered, what is kept.

    Example: contune history support/; contune history support/ --json
    """
    model, _ = opened(folder, plugin)
    rows = model.history()
    if as_json:
        kept = model.config.policy.model_dump(mode="json")
        typer.echo(as_json_text({"policy": kept, "versions": [row.values() for row in rows]}))
        return
    print_rich(history_table(rows))
    policy = model.config.policy
    typer.echo("<: answers now; x: retired; keeps: of learned examples / of those that test")
    typer.echo(f"policy: learned examples {policy.buffer}, suites {policy.suites}")


def history_table(rows: "list[Row]") -> Any:
    """The versions as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "name", "learned", "tested", "gate", "gain", "forgot", "made", "keeps"):
        right = heading in ("learned", "tested", "gain", "forgot")
        table.add_column(
            heading, justify="right" if right else "left", no_wrap=heading != "name", min_width=len(heading)
        )
    for row in rows:
        mark = f"[bold]{row.number} <[/bold]" if row.live else f"{row.number} x" if row.retired else str(row.number)
        counts = (f"{row.learned:,}", f"{row.tested:,}")
        shares = (percent(row.gain), percent(row.forgetting))
        gate = "unsure" if row.outcome == "not enough evidence" else row.outcome or "–"
        kept = row.kept.replace("learned: ", "").replace("tested: ", "").replace("; ", "/")
        table.add_row(mark, row.name, *counts, gate, *shares, row.at[:10], kept)
    return table


def percent(share: float | None) -> str:
    """A share in percentage points."""
    return "–" if share is None else f"{100 * share + 0.0:+.1f}"


def diff(
    folder: Model,
    first: Version,
    second: Version,
    most: Annotated[int, typer.Option(help="Most examples to show.")] = 20,
    as_json: AsJson = False,
    plugin: Plugin = None,
) -> None:
    """Say what one version answers otherwise than another: flips by suite and class, and the examples that changed.

    Example: contune diff support/ 3 5
    """
    model, _ = opened(folder, plugin)
    found = model.diff(first, second)
    if as_json:
        typer.echo(as_json_text(found.values()))
        return
    print_rich(flips_table(found))
    for one in [one for one in found.changed if one.flip != "same"][:most]:
        typer.echo(f"{one.flip:4} {one.suite} {one.id} {one.label}: {one.before} -> {one.after}  {one.shown}")


def flips_table(found: "Difference") -> Any:
    """Flips by suite and class as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "examples", f"version {found.first}", f"version {found.second}", "lost", "won"):
        table.add_column(heading, justify="left" if not heading else "right")
    for one in [*found.suites, *(each for each in found.classes if each.lost or each.won)]:
        shares = (f"{100 * one.before:.1f}", f"{100 * one.after:.1f}")
        table.add_row(one.name, f"{one.n:,}", *shares, str(one.lost), str(one.won))
    return table


def verify(folder: Model, plugin: Plugin = None) -> None:
    """Check every byte: blocks, records, the log's chain, the pointer, and that what was forgotten is gone.

    Exit code 0: all is as it was written. 1: each problem is a line that names the object and the versions it touches.
    """
    model, _ = opened(folder, plugin)
    found = model.verify()
    for sentence in found:
        typer.echo(sentence)
    if found:
        raise typer.Exit(1)
    typer.echo(f"{folder}: {len(model.folder.order())} versions, every byte is as it was written")
