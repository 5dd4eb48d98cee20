"""The command line: the only place with options.

Exit codes: 0 well; 1 failed; 2 configuration; 3 data; 4 run directory; 5 not finite; 130 stopped, and resumable.
"""

import json
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from contune.errors import ConfigError, ContuneError
from contune.merge.command import merge

if TYPE_CHECKING:
    from contune.contract.processes import Processes
    from contune.run.folder.group import RunGroup

app = typer.Typer(
    help="Keep a pretrained model learning: tasks arrive one by one, small parts are trained, the past is protected.",
    epilog="Start with: contune run quickstart. Exit codes: 0 well, 1 failed, 2 configuration, 3 data, "
    "4 run directory, 5 loss not finite, 130 stopped and resumable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
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


@app.command()
def run(
    config: Config,
    changes: Set = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2", help="Try each value, such as train.seed=0,1,2; several sweeps: every combination."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The new run directory.", show_default="runs/<name>")] = None,
    track: Annotated[
        str | None, typer.Option(help="Also log to tensorboard, mlflow or wandb, where installed.")
    ] = None,
    plugin: Plugin = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Learn a stream of tasks and write a run directory with results, predictions, checkpoints and a report.

    Example: contune run quickstart; contune run my.yaml --set method.rank=16 --set train.epochs=3 --out runs/rank16;
    contune run my.yaml --sweep method.strength=1,10,100 --sweep train.seed=0,1,2
    """
    load_plugins(plugin)
    from contune.run.config import load_config

    loaded, base = load_config(config, changes or [], sweep or [])
    from contune.run.execute import choose_device, make_method

    choose_device(loaded.device)
    out = out or free_folder(Path("runs") / Path(config).stem)
    failed = False
    if not loaded.several:
        folders = [carry_out(loaded.single(loaded.method or {}), base, out, quiet or as_json, track)]
    else:
        from contune.run.folder.group import RunGroup, members_of

        for _, single in members_of(loaded):
            make_method(single)
        main = find_processes().main
        group = RunGroup.create(out, loaded, base) if main else RunGroup(out, base, members_of(loaded))
        folders, failed = carry_out_group(group, quiet or as_json, track)
    show(folders, out / "report.html", quiet=quiet, as_json=as_json)
    if failed:
        raise typer.Exit(1)


@app.command()
def resume(directory: Path, plugin: Plugin = None, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Go on with a run that was stopped or killed; it ends with the same numbers as if it had not been."""
    load_plugins(plugin)
    from contune.run.folder.group import RunGroup

    group, failed = RunGroup.read(directory), False
    if group is None:
        go_on(directory, quiet or as_json)
        folders = [directory]
    else:
        folders, failed = carry_out_group(group, quiet or as_json, None)
    show(folders, directory / "report.html", quiet=quiet, as_json=as_json)
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(help="One or more run directories.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    figures: Annotated[Path | None, typer.Option(help="Also write every plot as SVG and PNG to this folder.")] = None,
) -> None:
    """Write one self-contained HTML file about one run, or several side by side."""
    from contune.run.report.report import write_figures, write_report

    typer.echo(write_report(directories, out))
    if figures is not None:
        for path in write_figures(directories, figures):
            typer.echo(path)


@app.command()
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


@app.command()
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

    for name, answer in predict_file(directory, inputs, task):
        typer.echo(json.dumps({"input": name, "prediction": answer}, ensure_ascii=False))


@app.command()
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


app.command()(merge)


@app.command(name="list")
def list_things(
    what: Annotated[str, typer.Argument(help="methods, streams or parts")] = "methods", plugin: Plugin = None
) -> None:
    """List what is there: methods (recipes), streams (built in) or parts (for free composition).

    Example: contune list methods; contune list parts; then contune show NAME for one of them.
    """
    load_plugins(plugin)
    from contune.run.listing import listing

    print_rich(listing(what))


@app.command(name="show")
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


@app.command()
def schema(plugin: Plugin = None) -> None:
    """Print a JSON schema of the whole configuration, with which editors complete keys and mark mistakes.

    Example: contune schema > contune.schema.json; then begin a YAML file with
    # yaml-language-server: $schema=contune.schema.json
    """
    load_plugins(plugin)
    from contune.run.schema import config_schema

    typer.echo(json.dumps(config_schema(), indent=1))


@app.command()
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


@app.command()
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


def carry_out(
    config: Any, base: Path, out: Path, quiet: bool, track: str | None, *, label: str = "", shared: Any = None
) -> Path:
    """One run with progress on the terminal."""
    from contune.run.execute import start_run
    from contune.run.terminal import TerminalObserver, stderr_console

    console = stderr_console(quiet)
    watcher = TerminalObserver(console, label or config.label())
    processes = find_processes()
    start = partial(start_run, config, base, out, processes=processes, say=console.print, shared=shared)
    with watcher.shown():
        if track is None or not processes.main:
            return start(observer=watcher)
        from contune.run.tracking import TrackingObserver

        tracker = TrackingObserver(watcher, track, out.parent / "tracking", out.name)
        try:
            return start(observer=tracker)
        finally:
            tracker.close()


def carry_out_group(group: "RunGroup", quiet: bool, track: str | None) -> tuple[list[Path], bool]:
    """Every run of a group that is not finished yet; the folders of those that are, and whether one has failed.

    A run that fails is named, and the others go on; `contune resume` tries it again. All share one store of frozen
    results and read the stream once.
    """
    from contune.run.execute import Interrupted
    from contune.run.folder.run_cache import RunCache

    plan = [(label, single) for label, single in group.members if not group.finished(label)]
    begun, shared = {label for label, _ in plan if group.begun(label)}, RunCache()
    find_processes().wait()
    failures: list[Exception] = []
    for label, single in plan:
        folder = group.folder / label
        try:
            if label in begun:
                go_on(folder, quiet, shared)
            else:
                carry_out(single, group.base, folder, quiet, track, label=label, shared=shared)
        except Interrupted:
            raise
        except Exception as error:  # whatever went wrong in one run, the others can still be had
            failures.append(error)
            if not isinstance(error, ContuneError):
                traceback.print_exc()
            typer.secho(f"contune: {label} failed: {error}", err=True, fg="red")
    folders = [group.folder / label for label, _ in group.members if group.finished(label)]
    if failures and not folders:
        raise failures[0]
    return folders, bool(failures)


def go_on(folder: Path, quiet: bool, shared: Any = None) -> None:
    """Resume one run with progress on the terminal."""
    from contune.run.execute import resume_run
    from contune.run.terminal import TerminalObserver, stderr_console

    console = stderr_console(quiet)
    watcher = TerminalObserver(console, folder.name)
    with watcher.shown():
        processes = find_processes()
        resume_run(folder, processes=processes, observer=watcher, say=console.print, shared=shared)


def show(folders: list[Path], report_path: Path, *, quiet: bool, as_json: bool) -> None:
    """Print what came out and write the report."""
    from contune.run.report.compare import compare as compare_runs
    from contune.run.report.report import write_report
    from contune.run.report.tables import terminal_matrix, terminal_table

    if not find_processes().main:
        return
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    write_report(folders, report_path)
    if as_json:
        typer.echo(json.dumps(results if len(results) > 1 else results[0], ensure_ascii=False))
        return
    if not quiet:
        print_rich(terminal_matrix(results[0]))
    print_rich(terminal_table(compare_runs(folders)))
    typer.echo(f"report: {report_path}")


def load_plugins(names: list[str] | None) -> list[str]:
    """Import the modules or files a user named on the command line; gives the recipes that came with them."""
    from importlib import import_module
    from importlib.util import module_from_spec, spec_from_file_location

    from contune.method.catalog import add_plugin, recipes

    before = set(recipes()) if names else set()
    for name in names or []:
        if name.endswith(".py"):
            spec = spec_from_file_location(Path(name).stem, name)
            if spec is None or spec.loader is None or not Path(name).is_file():
                raise ConfigError(f"no Python file {name}; give the file that holds your recipe")
            module = module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            try:
                module = import_module(name)
            except ImportError as error:
                raise ConfigError(f"cannot import plugin {name!r}: {error}") from error
        add_plugin(module)
    new = sorted(set(recipes()) - before) if names else []
    if names and not new:
        raise ConfigError(f"{names[-1]} holds no recipe: define a function with the return annotation -> Method")
    return new


def find_processes() -> "Processes":
    """This process among those that accelerate or torchrun started."""
    import os

    from contune.contract.processes import Processes

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    return Processes(accelerator.process_index, accelerator.num_processes, accelerator)


def free_folder(folder: Path) -> Path:
    """`folder`, or the first of `folder-2`, `folder-3`, … that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def print_rich(*things: Any) -> None:
    """Print to standard output."""
    from rich.console import Console

    Console().print(*things)


def main() -> None:
    """Entry point: errors become one sentence and an exit code."""
    try:
        app()
    except ContuneError as error:
        typer.secho(f"contune: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
