"""Commands that change a living model: `create`, `update`, `gate`, `promote`, `rollback`, `forget` and `gc`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from contune.cli.living.common import Model, Reason, Version, note, opened
from contune.cli.options import AsJson, Plugin, Quiet, Set
from contune.cli.plugins import load_plugins
from contune.cli.screen import as_json_text
from contune.errors import ConfigError

Kinds = Literal["class-incremental", "domain-incremental", "task-incremental"]
Objectives = Literal["classify", "multi-label", "regress", "tag", "write"]


def create(
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    model: Annotated[str | None, typer.Option(help="The frozen model: a folder or a hub id.")] = None,
    method: Annotated[
        str | None, typer.Option(help="A recipe, such as er or ranpac; see contune list methods.")
    ] = None,
    kind: Annotated[Kinds | None, typer.Option(help="What is new in an update: classes, domains, named tasks.")] = None,
    objective: Annotated[Objectives | None, typer.Option(help="What an answer is; classify unless said.")] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A YAML file: buffer (none, features, raw), suites (none, raw), days.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--from", help="Begin with what a finished run knows.")] = None,
    changes: Set = None,
    plugin: Plugin = None,
) -> None:
    """Make a living model: version 0, which knows nothing yet. Every update makes a version after it.

    Example: contune create support/ --model sentence-transformers/all-MiniLM-L6-v2 --method ranpac --set gate.margin=0.01

    What never changes is decided here: the model, the method, the gate, and what may stay on the disk of the data.
    """
    load_plugins(plugin)
    from contune.living.config import read_policy
    from contune.living.model import LivingModel

    if run is None and (model is None or method is None):
        raise ConfigError("give --model and --method, or --from a run that has both")
    kept = None if policy is None else read_policy(policy)
    keys: dict[str, Any] = {"kind": kind, "objective": objective, "policy": kept, "changes": changes or []}
    made = LivingModel.create(folder, model, method, run=run, **keys)
    config = made.config
    typer.echo(f"{folder}: version 0. Learned examples: {config.policy.buffer}; suites: {config.policy.suites}.")
    typer.echo(f"Next: contune update {folder} FILE")


def update(
    folder: Model,
    data: Annotated[Path, typer.Argument(help="New examples: CSV, JSONL, Parquet, or a folder of images.")],
    test: Annotated[
        Path | None, typer.Option(help="Examples that test this update; else a share is set aside by hash.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call it.", show_default="the file's name")] = None,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Make a candidate; do not ask the gate.")] = False,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="What the data calls a class that is known as NEW.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Learn data that was just learned once more.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    plugin: Plugin = None,
) -> None:
    """Learn from new data, and let the new version answer where the gate says so.

    Example: contune update support/ january.csv; contune update support/ may.csv --test may_test.csv --rename Storno=cancel

    Exit codes: 0 promoted (or, with --no-gate, made), 3 blocked by the gate, 4 not enough evidence. Killed at any time, the
    same command arrives at the same version.
    """
    model, shown = opened(folder, plugin, quiet=quiet or as_json, watch=name or data.stem)
    labels = dict(split_pair(pair) for pair in rename or [])
    given = None if test is None else str(test)
    with shown:
        made = model.update(str(data), given, name=name, gate=not no_gate, labels=labels, again=again)
    if as_json:
        typer.echo(as_json_text(asdict(made)))
    else:
        typer.echo(f"version {made.number} ({made.name}, {made.id[:12]}): " + (made.sentence or "a candidate"))
        typer.echo(
            "it answers now" if made.promoted else f"version {model.folder.order().index(model.folder.live())} answers"
        )
    leave(made.outcome if not made.promoted else None)


def split_pair(pair: str) -> tuple[str, str]:
    """OLD=NEW in two."""
    old, sign, new = pair.partition("=")
    if not (old and sign and new):
        raise ConfigError(f"--rename is given {pair!r}; write OLD=NEW, such as --rename Storno=cancel")
    return old, new


def leave(outcome: str | None) -> None:
    """End with the exit code of an outcome."""
    from contune.living.gate.decide import EXIT_CODES

    code = dict(EXIT_CODES).get(outcome, 0)  # type: ignore[call-overload]
    if code:
        raise typer.Exit(code)


def gate(
    folder: Model,
    candidate: Annotated[str | None, typer.Argument(help="A version.", show_default="the one made last")] = None,
    as_json: AsJson = False,
    plugin: Plugin = None,
) -> None:
    """Ask whether a candidate may take the place of the version that answers. Nothing is moved.

    Exit codes: 0 promote, 3 blocked, 4 not enough evidence.

    Every example of every suite is answered by both. Blocked is a suite or slice that is shown to be worse (exact McNemar,
    Holm), or a mean that has lost more than the margin (stratified paired bootstrap).
    """
    model, _ = opened(folder, plugin, quiet=as_json)
    verdict = model.gate(candidate)
    typer.echo(as_json_text(verdict.values()) if as_json else verdict.sentence)
    leave(verdict.outcome)


def promote(folder: Model, version: Version, reason: Reason, plugin: Plugin = None) -> None:
    """Let a version answer from now on, whatever the gate has said.

    Example: contune promote support/ 4 --reason "checked by hand"
    """
    model, _ = opened(folder, plugin)
    typer.echo(f"version {model.promote(version, reason=reason)} answers now")


def rollback(
    folder: Model,
    reason: Reason,
    version: Annotated[str | None, typer.Argument(help="A version.", show_default="the parent of the live one")] = None,
    plugin: Plugin = None,
) -> None:
    """Go back to an earlier version, to the bit. Later versions stay, and can be promoted again.

    Example: contune rollback support/ --reason "complaints since Monday"
    """
    model, _ = opened(folder, plugin)
    typer.echo(f"version {model.rollback(version, reason=reason)} answers now")


def forget(
    folder: Model,
    classes: Annotated[list[str] | None, typer.Option("--class", metavar="NAME", help="A class.")] = None,
    ids: Annotated[
        Path | None, typer.Option(help="A file with the hash of an example a line (12 signs or more).")
    ] = None,
    update: Annotated[str | None, typer.Option(metavar="VERSION", help="All that one update brought.")] = None,
    examples: Annotated[Path | None, typer.Option(help="The examples again, where they were not kept.")] = None,
    as_json: AsJson = False,
    plugin: Plugin = None,
) -> None:
    """Unlearn: a new version that never had these examples, and a certificate of how it was made.

    Example: contune forget support/ --class complaint; contune forget support/ --update may

    Sums of frozen features are subtracted; whatever was trained is learned again from the last version before. Versions that
    held the examples are retired and their blocks dropped.
    """
    model, _ = opened(folder, plugin, quiet=as_json)
    names = (
        [] if ids is None else [line.strip() for line in ids.read_text(encoding="utf-8").splitlines() if line.strip()]
    )
    given = None if examples is None else str(examples)
    found = model.forget(classes=classes or [], ids=names, update=update, examples=given)
    typer.echo(as_json_text(asdict(found)) if as_json else found.sentence())


def gc(folder: Model, plugin: Plugin = None) -> None:
    """Drop blocks and records that no version needs, what was forgotten, and raw examples whose days are over."""
    model, _ = opened(folder, plugin)
    found = model.gc()
    typer.echo(f"dropped {found.objects:,} blocks ({found.bytes:,} bytes) and {found.records:,} records")
    if found.expired:
        note(f"the raw examples of {found.expired:,} updates are over and were dropped")
