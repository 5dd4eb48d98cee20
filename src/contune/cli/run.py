"""Commands that learn: `run` and `resume`."""

import json
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contune.cli.options import AsJson, Config, Plugin, Quiet, Set
from contune.cli.plugins import load_plugins
from contune.cli.screen import as_json_text, print_rich
from contune.errors import ContuneError

if TYPE_CHECKING:
    from contune.contract.processes import Processes
    from contune.run.folder.group import RunGroup


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
    results = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders]
    write_report(folders, report_path)
    if as_json:
        typer.echo(as_json_text(results if len(results) > 1 else results[0]))
        return
    if not quiet:
        print_rich(terminal_matrix(results[0]))
    print_rich(terminal_table(compare_runs(folders)))
    typer.echo(f"report: {report_path}")


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
