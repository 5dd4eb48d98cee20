"""The command `contune merge`: models or adapters in, one model or adapter out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contune.cli.options import Quiet
from contune.cli.screen import as_json_text
from contune.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from contune.merge.models.recipe import Recipe

# The options that each method reads; any other that is given is refused, so that none is silently without effect.
SUMS = {"base", "weight", "scale", "dare", "seed", "rank", "lines_alpha", "lines_beta", "leave"}
USES = {
    "linear": SUMS,
    "task-arithmetic": SUMS,
    "ties": SUMS | {"keep"},
    "smile": {"base", "rank", "gate_rank", "top"},
    "transfer": {"base", "onto", "rank"},
    "graft": {"base", "share", "leave"},
}

Models = Annotated[list[Path], typer.Argument(help="Folders of peft adapters or of full models, all of one kind.")]
Out = Annotated[Path, typer.Option(help="The new folder; never one that exists.")]
Method = Annotated[str, typer.Option(help="linear, task-arithmetic, ties, smile, transfer or graft.")]
Base = Annotated[Path | None, typer.Option(help="The model before fine-tuning.")]
Onto = Annotated[Path | None, typer.Option(help="transfer: the other version of the base.")]
Weight = Annotated[list[float] | None, typer.Option(help="One for each model, in their order.", show_default="1 each")]
Scale = Annotated[float | None, typer.Option(help="Multiplies the merged change.", show_default="1")]
Keep = Annotated[float | None, typer.Option(help="ties: share of entries that trimming keeps.", show_default="0.2")]
Dare = Annotated[float | None, typer.Option(help="First drop entries at random (DARE); the share that is kept.")]
Seed = Annotated[int | None, typer.Option(help="Seed of --dare.", show_default="0")]
RankOption = Annotated[str | None, typer.Option(help="Rank of a merged adapter or of experts; a number or full.")]
GateRank = Annotated[int | None, typer.Option(help="smile: directions of a router.", show_default="16")]
Top = Annotated[int | None, typer.Option(help="smile: experts that answer for a token.", show_default="1")]
Alpha = Annotated[float | None, typer.Option(help="LiNeS: scale of the first block and of all outside blocks.")]
Beta = Annotated[float | None, typer.Option(help="LiNeS: what the last block gets on top.", show_default="1 - alpha")]
Share = Annotated[float | None, typer.Option(help="graft: share of the weights that moved most.")]
Leave = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Tensors taken whole from the first model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the record of the merge as JSON, and no progress.")]


def merge(
    models: Models,
    out: Out,
    method: Method = "linear",
    base: Base = None,
    onto: Onto = None,
    weight: Weight = None,
    scale: Scale = None,
    keep: Keep = None,
    dare: Dare = None,
    seed: Seed = None,
    rank: RankOption = None,
    gate_rank: GateRank = None,
    top: Top = None,
    lines_alpha: Alpha = None,
    lines_beta: Beta = None,
    share: Share = None,
    leave: Leave = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Merge fine-tuned models or adapters of one base, mix them, move one to another base, or graft a part of one.

    Example: contune merge mails tickets --out both --method ties --keep 0.3, where mails and tickets are adapters that
    `contune export` or peft has written.
    """
    given = dict(locals())
    others = {"models", "out", "method", "quiet", "as_json"}
    options = {key: value for key, value in given.items() if key not in others and value not in (None, [])}
    require_used(method, options)
    record = carry_out(models, out, method, options, show=not (quiet or as_json))
    if as_json:
        typer.echo(as_json_text(record))
        return
    for note in notes(record):
        typer.echo(f"note: {note}", err=True)
    typer.echo(out)


def require_used(method: str, options: dict[str, Any]) -> None:
    """Refuse an unknown method, and options that the method would not read.

    >>> require_used("linear", {"share": 0.1})
    Traceback (most recent call last):
    contune.errors.ConfigError: --share does nothing with --method linear; it is for graft
    """
    if method not in USES:
        dare = " (DARE is --dare, before any of them)" if method.startswith("dare") else ""
        raise ConfigError(f"--method {method!r} is unknown; {did_you_mean(method, USES)}{dare}")
    for name in options:
        if name not in USES[method]:
            users = ", ".join(key for key, used in USES.items() if name in used)
            raise ConfigError(f"--{name.replace('_', '-')} does nothing with --method {method}; it is for {users}")


def carry_out(models: list[Path], out: Path, method: str, options: dict[str, Any], *, show: bool) -> dict[str, Any]:
    """Call the door of a method; gives the record of what was done."""
    from contune.merge.smile.folder import make_smile

    adapters = [(model / "adapter_config.json").is_file() for model in models]
    if any(adapters) and not all(adapters):
        raise ConfigError(f"{models[adapters.index(True)]} is an adapter and others are full models; give one kind")
    if method == "smile":
        rank = rank_of(options.get("rank", "32"))
        sizes = {key: options[key] for key in ("gate_rank", "top") if key in options}
        wide = needed(options, "base", method)
        return make_smile(models, wide, out, rank=0 if rank == "full" else rank, show=show, **sizes)
    if method in ("transfer", "graft"):
        if len(models) != 1:
            raise ConfigError(f"{len(models)} models were given; --method {method} takes one")
        return move_one(models[0], out, method, options, is_adapter=adapters[0], show=show)
    shared = {"base": options.get("base"), "leave": options.get("leave", []), "show": show}
    if all(adapters):
        from contune.merge.adapters.adapters import merge_adapters

        chosen = rank_of(options["rank"]) if "rank" in options else None
        return merge_adapters(models, out, recipe_of(method, options), rank=chosen, **shared)
    from contune.merge.models.checkpoints import merge_checkpoints

    refuse_rank(options)
    return merge_checkpoints(models, out, recipe_of(method, options), **shared)


def move_one(
    model: Path, out: Path, method: str, options: dict[str, Any], *, is_adapter: bool, show: bool
) -> dict[str, Any]:
    """Transfer or graft one model."""
    from contune.merge.adapters.adapters import transfer_adapter
    from contune.merge.models.checkpoints import graft, transfer

    if method == "transfer":
        onto = needed(options, "onto", method)
        if is_adapter:
            rank = rank_of(options["rank"]) if "rank" in options else None
            return transfer_adapter(model, onto, out, base=options.get("base"), rank=rank, show=show)
        refuse_rank(options)
        return transfer(model, needed(options, "base", method), onto, out, show=show)
    if is_adapter:
        raise ConfigError(f"{model} is an adapter; grafts choose single weights, so give full models (merge it first)")
    base, share = needed(options, "base", method), needed(options, "share", method)
    return graft(model, base, out, share=share, leave=options.get("leave", []), show=show)


def recipe_of(method: str, options: dict[str, Any]) -> "Recipe":
    """The recipe that the options describe."""
    from contune.merge.models.recipe import Recipe

    if "seed" in options and "dare" not in options:
        raise ConfigError("--seed does nothing without --dare")
    lines = None
    if "lines_alpha" in options:
        alpha = options["lines_alpha"]
        lines = (alpha, options.get("lines_beta", 1 - alpha))
    elif "lines_beta" in options:
        raise ConfigError("--lines-beta needs --lines-alpha, the scale of the first block")
    given = {key: options[key] for key in ("scale", "keep", "dare", "seed") if key in options}
    weights = tuple(options["weight"]) if "weight" in options else None
    return Recipe(method=method, weights=weights, lines=lines, **given)


def rank_of(text: str) -> Any:
    """A number, or `full`.

    >>> rank_of("8"), rank_of("full")
    (8, 'full')
    """
    if text == "full":
        return text
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--rank is {text!r}; give a number of at least 1, or full")
    return int(text)


def needed(options: dict[str, Any], name: str, method: str) -> Any:
    """An option that a method cannot do without."""
    if name not in options:
        raise ConfigError(f"--method {method} needs --{name.replace('_', '-')}")
    return options[name]


def refuse_rank(options: dict[str, Any]) -> None:
    """Full models have no rank to choose."""
    if "rank" in options:
        raise ConfigError("--rank does nothing with full models; it is for adapters and for smile")


def notes(record: dict[str, Any]) -> list[str]:
    """What a person should know about the result.

    >>> notes({"kept": {"share": 0.5, "layer": "q"}})
    ['the rank keeps 50.0 % of the squared norm of the change in q, its worst layer; --rank full keeps all']
    """
    found = []
    kept = record.get("kept", {"share": 1.0})
    if kept["share"] < 0.999:
        share = f"{100 * kept['share']:.1f} %"
        found.append(
            f"the rank keeps {share} of the squared norm of the change in {kept['layer']}, its worst layer; "
            "--rank full keeps all"
        )
    if record.get("not_mixed"):
        names = ", ".join(record["not_mixed"][:3])
        found.append(f"not in the mixture, where the base answers alone: {names} ({len(record['not_mixed'])} in all)")
    return found
