"""Commands that use the model a run has trained: `predict` and `export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from contune.cli.living.common import is_living, note, opened
from contune.cli.options import Plugin
from contune.cli.plugins import load_plugins
from contune.cli.screen import as_json_text


def predict(
    directory: Annotated[Path, typer.Argument(help="A run directory, or the folder of a living model.")],
    inputs: Annotated[
        Path, typer.Argument(help="A text file with one text a line, or an image, or a folder of images.")
    ],
    task: Annotated[int | None, typer.Option(help="The task, from 0; task-incremental runs alone.")] = None,
    plugin: Plugin = None,
) -> None:
    """Answer new inputs with the model a run has trained, or the live version: one JSON object a line."""
    load_plugins(plugin)
    from contune.run.predict import answered, predict_file

    if is_living(directory):
        model, _ = opened(directory, plugin)
        live = model.folder.order().index(model.folder.live())
        for name, one in answered(model.learner(), inputs, task, note):
            typer.echo(as_json_text({"input": name, "prediction": one, "score": one.score, "version": live}))
        return
    for name, answer in predict_file(directory, inputs, task, note):
        typer.echo(as_json_text({"input": name, "prediction": answer}))


def export(
    directory: Annotated[Path, typer.Argument(help="The run directory, or the folder of a living model.")],
    out: Annotated[Path, typer.Option(help="The new folder to write.")],
    form: Annotated[
        Literal["peft", "merged", "safetensors"],
        typer.Option("--format", help="peft: a plain peft folder. merged: a stock model. safetensors: all tensors."),
    ] = "peft",
    plugin: Plugin = None,
) -> None:
    """Write what a run has learned, or the live version, as files that peft and transformers load."""
    load_plugins(plugin)
    from contune.run.export import export_learner, export_run

    if is_living(directory):
        names = export_learner(opened(directory, plugin)[0].learner(), out, form)
    else:
        names = export_run(directory, out, form)
    for name in names:
        typer.echo(out / name)
