"""The command line: the only place with options.

Exit codes: 0 well; 1 failed; 2 configuration; 3 data; 4 run directory; 5 not finite; 130 stopped, and resumable.
The gate of a living model ends with 0 promote, 3 blocked or 4 not enough evidence.
One file for each group of commands; torch is imported when a command needs it, so that `contune --help` is instant.
"""

import sys

import typer

from contune.cli import look, merge, models, new, results, run
from contune.cli.living import change, inbox, serve
from contune.cli.living import look as living
from contune.cli.screen import never_fail_to_print
from contune.errors import ContuneError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Keep a pretrained model learning: tasks arrive one by one, small parts are trained, the past is protected.",
    epilog="Start with: contune run quickstart. Exit codes: 0 well, 1 failed, 2 configuration, 3 data, "
    "4 run directory, 5 loss not finite, 130 stopped and resumable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (run.run, run.resume, results.report, results.compare, models.predict, models.export, merge.merge):
    app.command()(command)
app.command(name="list")(look.list_things)
app.command(name="show")(look.show_thing)
app.command()(look.schema)
app.command()(look.explain)
app.command()(look.check)
app.command()(new.new)
LIVING = (change.create, change.update, change.gate, change.promote, change.rollback, living.history, living.diff)
for about_living in (*LIVING, change.forget, inbox.watch, living.verify, change.gc, serve.serve):
    app.command(rich_help_panel="A living model")(about_living)


def main() -> None:
    """Entry point: errors become one sentence and an exit code."""
    never_fail_to_print()
    try:
        app()
    except ContuneError as error:
        typer.secho(f"contune: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
