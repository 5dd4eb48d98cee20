"""Commands that look at what there is: `list`, `show`, `schema`, `explain` and `check`."""

import json
from typing import Annotated

import typer

from contune.cli.options import Config, Plugin, Set
from contune.cli.plugins import load_plugins
from contune.cli.screen import print_rich


def list_things(
    what: Annotated[str, typer.Argument(help="methods, streams or parts")] = "methods", plugin: Plugin = None
) -> None:
    """List what is there: methods (recipes), streams (built in) or parts (for free composition).

    Example: contune list methods; contune list parts; then contune show NAME for one of them.
    """
    load_plugins(plugin)
    from contune.run.listing import listing

    print_rich(listing(what))


def show_thing(
    name: Annotated[
        str,
        typer.Argument(help="A method (er), a part (rule:ewc, head:ridge) or a key (train, train.lr, stream.data)."),
    ],
    plugin: Plugin = None,
) -> None:
    """Say what a method, a part or a key means: every option with its default and source, the cost, and an example.

    Example: contune show er; contune show rule:ewc; contune show train; contune show train.lr
    """
    load_plugins(plugin)
    from contune.run.show import rendered, shown

    print_rich(rendered(shown(name)))


def schema(plugin: Plugin = None) -> None:
    """Print a JSON schema of the whole configuration, with which editors complete keys and mark mistakes.

    Example: contune schema > contune.schema.json; then begin a YAML file with
    # yaml-language-server: $schema=contune.schema.json
    """
    load_plugins(plugin)
    from contune.run.schema import config_schema

    typer.echo(json.dumps(config_schema(), indent=1))


def explain(config: Config, changes: Set = None, plugin: Plugin = None) -> None:
    """Say what a configuration would train, how large it is and how many passes it takes, before any compute.

    Example: contune explain my.yaml --set method=o-lora
    """
    load_plugins(plugin)
    from contune.run.config import load_config
    from contune.run.folder.group import members_of
    from contune.run.listing import explanation

    loaded, base = load_config(config, changes or [])
    for _, single in members_of(loaded):
        print_rich(explanation(single, base))


def check(
    method: Annotated[
        str, typer.Argument(help="A recipe's name, a Python file that holds one, or a part such as rule:ewc.")
    ],
    on: Annotated[
        str,
        typer.Option(
            help="images, texts, answers (written), multi-label, tag or regress; all: wherever it is accepted."
        ),
    ] = "all",
    plugin: Plugin = None,
) -> None:
    """Put a method through the common checks: learns, resumes exactly, leaves the base unchanged, peeks at nothing.

    Example: contune check er; contune check lfpt5 --on answers; contune check rule:ewc; contune check my_method.py
    """
    names = load_plugins([*(plugin or []), method] if method.endswith(".py") else plugin)
    from contune.checks.named import named_checks

    failed = 0
    for found in named_checks(names[-1] if method.endswith(".py") else method, on):
        mark = "ok  " if found.problem is None else "FAIL"
        said = found.problem or found.refused
        typer.echo(f"{'    ' if found.refused else mark} {found.title}" + (f": {said}" if said else ""))
        failed += found.problem is not None
    if failed:
        raise typer.Exit(1)
