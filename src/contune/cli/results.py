"""Commands that read results: `report` and `compare`."""

from pathlib import Path
from typing import Annotated

import typer

from contune.cli.living.common import is_living, opened
from contune.cli.screen import print_rich
from contune.errors import ConfigError


def report(
    directories: Annotated[list[Path], typer.Argument(help="One or more run directories, or a living model's folder.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    figures: Annotated[Path | None, typer.Option(help="Also write every plot as SVG and PNG to this folder.")] = None,
) -> None:
    """Write one self-contained HTML file about one run, several side by side, or a living model."""
    if len(directories) == 1 and is_living(directories[0]):
        from contune.living.pages.page import write_page

        model, _ = opened(directories[0], None)
        typer.echo(write_page(model.folder, model.config, out))
        return
    from contune.run.report.report import write_figures, write_report

    typer.echo(write_report(directories, out))
    if figures is not None:
        for path in write_figures(directories, figures):
            typer.echo(path)


def compare(
    directories: Annotated[list[Path], typer.Argument(help="Run directories: methods, seeds, orders.")],
    table: Annotated[str | None, typer.Option(help="Print the numbers as md, csv or latex.")] = None,
) -> None:
    """Compare runs: mean, spread, 95 % interval over seeds and orders, and paired differences between methods."""
    from contune.run.report.compare import compare as compare_runs
    from contune.run.report.tables import table as as_table
    from contune.run.report.tables import terminal_table

    comparison = compare_runs(directories)
    for warning in comparison.warnings:
        typer.echo(f"note: {warning}", err=True)
    if table is not None:
        if table not in ("md", "csv", "latex"):
            raise ConfigError(f"--table is {table!r}; give md, csv or latex")
        typer.echo(as_table(comparison, table))
    else:
        print_rich(terminal_table(comparison))
