"""Commands that use the model a run has trained: `predict` and `export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from contune.cli.options import Plugin
from contune.cli.plugins import load_plugins
from contune.cli.screen import as_json_text


def predict(
    directory: Path,
    inputs: Annotated[
        Path, typer.Argument(help="A text file with one text a line, or an image, or a folder of images.")
    ],
    task: Annotated[int | None, typer.Option(help="The task, from 0; task-incremental runs alone.")] = None,
    plugin: Plugin = None,
) -> None:
    """Answer new inputs with the model a run has trained: one JSON object a line."""
    load_plugins(plugin)
    from contune.run.predict import predict_file

    for name, answer in predict_file(directory, inputs, task, lambda text: typer.echo(f"note: {text}", err=True)):
        typer.echo(as_json_text({"input": name, "prediction": answer}))


def export(
    directory: Annotated[Path, typer.Argument(help="The run directory.")],
    out: Annotated[Path, typer.Option(help="The new folder to write.")],
    form: Annotated[
        Literal["peft", "merged", "safetensors"],
        typer.Option("--format", help="peft: a plain peft folder. merged: a stock model. safetensors: all tensors."),
    ] = "peft",
    plugin: Plugin = None,
) -> None:
    """Write what a run has learned as files that peft and transformers load."""
    load_plugins(plugin)
    from contune.run.export import export_run

    for name in export_run(directory, out, form):
        typer.echo(out / name)
