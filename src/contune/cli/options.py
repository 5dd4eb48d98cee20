"""Options that several commands share."""

from typing import Annotated

import typer

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as train.epochs=3; see contune show train."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, results only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print results as JSON on standard output, and no progress.")]
Plugin = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="MODULE", help="A Python module or file with recipes or parts of your own."),
]
Config = Annotated[
    str,
    typer.Argument(help="A YAML file with model, stream, method and train, or a built-in one such as quickstart."),
]
