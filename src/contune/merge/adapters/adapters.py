"""Merge LoRA, rsLoRA and DoRA adapters by what they truly change, and move one to another version of its base."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from contune._files import fresh_folder, write_json
from contune.errors import ConfigError
from contune.merge.adapters.changes import Changes
from contune.merge.adapters.compatibility import require_fit, require_same_base, resolve_base
from contune.merge.adapters.folder import AdapterFolder
from contune.merge.adapters.result import AdapterResult
from contune.merge.files import write_tensors
from contune.merge.models.checkpoints import RECORD
from contune.merge.models.compatibility import Checkpoint, require_matches
from contune.merge.models.recipe import Recipe
from contune.merge.progress import progress

Rank = int | Literal["full"] | None


def merge_adapters(
    adapters: Sequence[str | Path],
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    base: str | Path | None = None,
    rank: Rank = None,
    leave: Sequence[str] = (),
    show: bool = False,
) -> dict[str, Any]:
    """Merge adapters of one base and write a plain LoRA that `PeftModel.from_pretrained` loads; gives the record.

    What is merged is the true change of each weight: s B A with s = alpha / r or alpha / sqrt(r), for DoRA the whole
    difference to the base weight, and LoRA's own bias times s. The merged change is factorised again by its singular
    values, to `rank`; by default to the sum of the adapters' ranks, which is exact for means and sums of LoRA and rsLoRA.
    DoRA, TIES and DARE make changes of full rank, which `rank="full"` keeps; the record says what share of the squared
    norm the worst layer kept. Layers that an adapter does not touch count as unchanged. Whole tensors in an adapter, such
    as a head, are merged as differences from the base, or by a plain mean where the base has none; those that match
    `leave` come from the first adapter. Dropout and other settings are the first adapter's.

    Memory: one layer of each adapter, dense where it must be. Differs from peft's `add_weighted_adapter`, which keeps
    rsLoRA's scaling after a change of rank, drops DoRA's magnitudes and LoRA's biases, and says nothing.
    """
    chosen = recipe or Recipe()
    if not adapters:
        raise ConfigError("no adapter was given; name at least one adapter folder")
    opened = [AdapterFolder(adapter) for adapter in adapters]
    chosen.coefficients(len(opened))
    require_matches(leave, opened[0].wholes)
    require_same_base(opened, given=base is not None)
    anchor = resolve_base(opened, chosen, base, leave)
    if anchor is not None:
        require_fit(opened, anchor)
    changes = Changes(opened, anchor, chosen, leave, progress("measuring", show))
    result = AdapterResult(changes, rank, anchor, str(base) if base else None)
    record = {"merge": chosen.described(), "adapters": [str(one.folder) for one in opened], "leave": list(leave)}
    return write(result, Path(out), record | {"base": str(base) if base else opened[0].base_name()}, show)


def transfer_adapter(
    adapter: str | Path,
    onto: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    rank: Rank = None,
    show: bool = False,
) -> dict[str, Any]:
    """Move an adapter to another version of its base, so that it changes every weight there as it did (arXiv 2503.20110).

    For LoRA and rsLoRA the factors stay what they do; DoRA's change is computed on its own base and factorised, to
    `rank="full"` exactly. Whole tensors move as differences. The result names `onto` as its base.
    """
    opened = AdapterFolder(adapter)
    target = Checkpoint(onto, "target base")
    require_fit([opened], target)
    chosen = Recipe(method="task-arithmetic")
    anchor = resolve_base([opened], chosen, base, ())
    if anchor is not None:
        require_fit([opened], anchor)
    result = AdapterResult(Changes([opened], anchor, chosen, ()), rank, target, str(onto))
    record = {"merge": {"method": "transfer"}, "adapters": [str(opened.folder)], "onto": str(onto)}
    return write(result, Path(out), record | {"base": str(base) if base else opened.base_name()}, show)


def write(result: AdapterResult, out: Path, record: dict[str, Any], show: bool) -> dict[str, Any]:
    """Write the adapter folder in one step."""
    with fresh_folder(out) as folder:
        write_json(folder / "adapter_config.json", result.config())
        write_tensors(folder, "adapter_model", result.specs, result.tensor, watch=progress("merging", show))
        record = record | {"rank": result.rank, "kept": result.least_kept()}
        write_json(folder / RECORD, record)
    return record
