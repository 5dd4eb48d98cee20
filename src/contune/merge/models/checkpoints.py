"""Merge, transfer and graft full checkpoints: folders of transformers in, a folder of transformers out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

from torch import Tensor

from contune._files import fresh_folder, write_json
from contune.backbone.source import copy_side_files
from contune.errors import ConfigError
from contune.merge.files import Spec, file_order, write_tensors
from contune.merge.models.compatibility import (
    Checkpoint,
    described_dtype,
    only,
    promoted,
    require_matches,
    require_together,
    unmerged,
)
from contune.merge.models.grafting import grafted, region_size
from contune.merge.models.lines_scaling import layer_scales
from contune.merge.models.recipe import Recipe, combined
from contune.merge.models.task_vector_transfer import padded_difference, padded_sum, require_transferable, row_spec
from contune.merge.progress import Watch, progress
from contune.merge.tensors import Tensors, difference, magnitude_threshold, plus

Paths = Sequence[str | Path]
RECORD = "merge.json"


def merge_checkpoints(
    models: Paths,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    base: str | Path | None = None,
    leave: Sequence[str] = (),
    show: bool = False,
) -> dict[str, Any]:
    """Merge full models that were fine-tuned from `base` and write a model folder; gives the record of the merge.

    A plain weighted mean needs no base; everything else works on the differences from it. Tensors whose names match a
    pattern of `leave` are taken from the first model as they are, and so are configuration and tokenizer. The result
    has the widest type among the models. Memory: one tensor of each model, widened.
    """
    chosen = recipe or Recipe()
    opened = [Checkpoint(model) for model in models]
    anchor = None if base is None else Checkpoint(base, "base")
    if not opened:
        raise ConfigError("no model was given; name at least one model folder")
    if anchor is None and not chosen.is_mean:
        raise ConfigError("only a plain weighted mean works without a base; give --base, the model before fine-tuning")
    chosen.coefficients(len(opened))
    require_matches(leave, opened[0].specs)
    names = floating(require_together(opened, leave, anchor), opened[0])
    every = [*opened, *([anchor] if anchor else [])]
    merged = _merged(opened, anchor, chosen, names, progress("measuring", show))
    result = Result(every, merged, lambda name: unmerged(name, opened, leave), opened[0].specs)
    record = {"merge": chosen.described(), "models": _names(opened), "base": str(base) if base else None}
    sides = [*([anchor] if anchor else []), opened[0]]
    return result.write(Path(out), record | {"leave": list(leave)}, sides, opened[0], show)


def _merged(
    models: Sequence[Checkpoint], base: Checkpoint | None, recipe: Recipe, names: Sequence[str], watch: Watch
) -> Tensors:
    parts = [only(model.tensors, names) for model in models]
    if base is None or recipe.is_mean:
        return combined(parts, recipe)  # the mean of models is the base plus the mean of their differences
    start = only(base.tensors, names)
    scales = None if recipe.lines is None else layer_scales(base.specs, *recipe.lines)
    return plus(start, combined([difference(part, start) for part in parts], recipe, scales, watch))


def transfer(
    tuned: str | Path, base: str | Path, onto: str | Path, out: str | Path, *, show: bool = False
) -> dict[str, Any]:
    """Add what fine-tuning changed in one version of a base to another: m_t + (m'_s - m_s) (arXiv 2503.20110).

    `tuned` was fine-tuned from `base`; `onto` is the other version. Computed in a wide type, because 16-bit differences
    lose low bits. Input and output embeddings may differ in their number of rows: rows that a version lacks count as 0,
    and rows that `tuned` lacks do not change. Configuration comes from `onto`, tokenizer and chat template from `tuned`.
    Differs: the released code pads only where the base has fewer rows and leaves the opposite case untouched.
    """
    new, old, target = Checkpoint(tuned), Checkpoint(base, "base"), Checkpoint(onto, "target base")
    require_transferable(new, old, target)
    names = floating(list(target.specs), target)
    change = padded_difference(only(new.tensors, names), only(old.tensors, names))
    moved = padded_sum(only(target.tensors, names), change)
    specs = {name: row_spec(name, target.specs, new.specs) for name in target.specs}
    result = Result([target, new, old], moved, lambda name: target.tensors[name], specs)
    record = {"merge": {"method": "transfer"}, "models": _names([new]), "base": str(base), "onto": str(onto)}
    return result.write(Path(out), record, [target, new], target, show)


def graft(
    tuned: str | Path, base: str | Path, out: str | Path, *, share: float, leave: Sequence[str] = (), show: bool = False
) -> dict[str, Any]:
    """Put the share of weights that fine-tuning moved most into the base, and nothing else (arXiv 2302.06600).

    Every weight of the result is exactly that of one of the two models. `share` counts entries over all tensors but
    those of `leave`, which are taken from the fine-tuned model whole (a head that the base lacks); the paper finds
    0.0001 enough for models tuned with plain SGD. Differs: the paper goes on to learn the region with the task's loss,
    starting from this one.
    """
    new, old = Checkpoint(tuned), Checkpoint(base, "base")
    require_matches(leave, new.specs)
    names = floating(require_together([new], leave, old), new)
    start, end = only(old.tensors, names), only(new.tensors, names)
    moves = difference(end, start)
    threshold = magnitude_threshold(moves, share, progress("measuring", show))
    result = Result([new, old], grafted(start, end, threshold), lambda name: new.tensors[name], new.specs)
    record = {"merge": {"method": "graft", "share": share}, "models": _names([new]), "base": str(base)}
    record |= {"leave": list(leave), "grafted": region_size(moves, threshold)}
    return result.write(Path(out), record, [old, new], new, show)


@final
class Result:
    """What a merge gives: tensors that are merged, a function for the others, and the shapes of all."""

    def __init__(
        self,
        sources: Sequence[Checkpoint],
        merged: Tensors,
        other: Callable[[str], Tensor],
        shapes: dict[str, Spec],
    ) -> None:
        self.merged, self.other = merged, other
        every = [source.specs for source in sources]
        wanted = {
            name: Spec(promoted(name, every) if name in merged else spec.dtype, spec.shape)
            for name, spec in shapes.items()
        }
        self.specs = file_order(wanted)

    def tensor(self, name: str) -> Tensor:
        """One tensor, computed now."""
        return self.merged[name] if name in self.merged else self.other(name)

    def write(
        self, out: Path, record: dict[str, Any], sides: Sequence[Checkpoint], configured: Checkpoint, show: bool
    ) -> dict[str, Any]:
        """Write the folder: side files of all `sides`, the later over the earlier, and one model's configuration."""
        with fresh_folder(out) as folder:
            for side in sides:
                copy_side_files(side.folder, folder)
            dtypes = {spec.dtype for spec in self.specs.values() if spec.dtype.is_floating_point}
            config = described_dtype(configured.config, dtypes)
            write_json(folder / "config.json", config | _vocabulary(config, self.specs, configured.specs))
            write_tensors(folder, "model", self.specs, self.tensor, watch=progress("merging", show))
            write_json(folder / RECORD, record)
        return record


def _vocabulary(config: dict[str, Any], specs: dict[str, Spec], before: dict[str, Spec]) -> dict[str, int]:
    """The vocabulary size where tables have grown."""
    size = config.get("vocab_size")
    grown = {spec.shape[0] for name, spec in specs.items() if spec.shape != before[name].shape}
    return {"vocab_size": max(grown)} if grown and isinstance(size, int) else {}


def floating(names: Sequence[str], model: Checkpoint) -> list[str]:
    """The names of tensors that hold real numbers."""
    return [name for name in names if name in model.specs and model.specs[name].dtype.is_floating_point]


def _names(models: Sequence[Checkpoint]) -> list[str]:
    return [str(model.folder) for model in models]
