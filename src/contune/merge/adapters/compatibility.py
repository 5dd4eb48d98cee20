"""Do these adapters belong together, and to this base?"""

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from contune.backbone.source import PACKAGED
from contune.errors import ConfigError, DataError
from contune.merge.adapters.folder import AdapterFolder
from contune.merge.models.compatibility import Checkpoint
from contune.merge.models.recipe import Recipe


def require_same_base(adapters: Sequence[AdapterFolder], *, given: bool) -> None:
    """Refuse adapters that name different bases (unless the user has named one), or whose layers differ in shape."""
    first = adapters[0]
    for other in adapters[1:]:
        ours, theirs = (one.base_name() for one in (first, other))
        if not given and same_place(ours) != same_place(theirs):
            raise DataError(
                f"adapter {first.folder} was made for base {ours!r} and {other.folder} for {theirs!r}; adapters of "
                "different bases do not add up: if both names mean the same weights, say so with --base"
            )
        for key in ("revision", "bias", "task_type"):
            mine, their = first.config.get(key), other.config.get(key)
            if mine != their and (key == "bias" or (mine and their)):
                raise DataError(
                    f"adapter {first.folder} has {key} {mine!r} and {other.folder} {their!r}; they must agree"
                )
    require_shapes(adapters)


def require_shapes(adapters: Sequence[AdapterFolder]) -> None:
    """Refuse adapters that give one layer, or one whole tensor, different shapes."""
    seen: dict[str, tuple[tuple[int, ...], Path]] = {}
    for one in adapters:
        shapes: dict[str, tuple[int, ...]] = {module: one.shape(module) for module in one.modules}
        shapes |= {name: one.tensors.specs[key].shape for name, key in one.wholes.items()}
        for name, shape in shapes.items():
            before, folder = seen.setdefault(name, (shape, one.folder))
            if before != shape:
                raise DataError(
                    f"{name} is {list(before)} in adapter {folder} and {list(shape)} in {one.folder}; "
                    "they were made for different bases and cannot be merged"
                )


def require_fit(adapters: Sequence[AdapterFolder], base: Checkpoint) -> None:
    """Refuse a base that lacks a layer of an adapter, or has it in another shape."""
    known: dict[str, str] = {}
    for one in adapters:
        for module in one.modules:
            name = base.find(module + ".weight")
            found, wanted = base.specs[name].shape, one.shape(module)
            if found not in (wanted, wanted[::-1]):
                raise DataError(
                    f"adapter {one.folder} (made for {one.base_name()!r}) changes {module} as {list(wanted)}, and base "
                    f"{base.folder} has {name} as {list(found)}; give the base that the adapter was trained on"
                )
            if known.setdefault(name, module) != module:
                raise DataError(
                    f"adapter {one.folder} calls {module} what another calls {known[name]}; they were saved by versions of "
                    "transformers with other names: load and save one of them once more"
                )


def resolve_base(
    adapters: Sequence[AdapterFolder], recipe: Recipe, base: str | Path | None, leave: Sequence[str]
) -> Checkpoint | None:
    """The base's weights where they are given or needed, found by the adapters' own word where it is a local folder."""
    if base is not None:
        return Checkpoint(base, "base")
    why = next((f"{one.folder} is DoRA" for one in adapters if any(map(one.is_dora, one.modules))), None)
    if why is None and recipe.lines is not None:
        why = "LiNeS counts all layers of the base"
    wholes = [name for one in adapters for name in one.wholes if not _left(name, leave)]
    if why is None and wholes and not recipe.is_mean:
        why = f"{wholes[0]} is a whole tensor and no low-rank change"
    if why is None:
        return None
    name = adapters[0].base_name()
    if name == PACKAGED or (Path(name).expanduser().is_dir() and name):
        return Checkpoint(name, "base")
    raise ConfigError(
        f"{why}, so the weights of the base are needed, and the adapters name {name!r}, which is no folder here; "
        "give --base with a local folder of that model"
    )


def same_place(name: str) -> str:
    """A name that is equal for two ways to write one folder."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if name and folder.is_dir() else name.rstrip("/")


def _left(name: str, leave: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in leave)
