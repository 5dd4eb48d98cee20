"""From a run to files that others load: a plain `peft` folder, a merged stock model, or everything trained as tensors.

Beside the model stand `head.safetensors` with the head's tensors, `labels.json` with the class of each column, and
`contune.json`, which says how a feature is read and on which base model all of it stands.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from contune._files import fresh_folder, require_free, write_json
from contune.backbone import source
from contune.contract.capability import Modules, find
from contune.contract.parts import Trait
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.errors import CombinationError
from contune.run.predict import load_learner

Format = Literal["peft", "merged", "safetensors"]


def export_run(directory: Path, out: Path, form: Format) -> list[str]:
    """Write what a run has learned to the new folder `out`; gives the names of the files."""
    require_free(out)
    return export_learner(load_learner(directory), out, form)


def export_learner(learner: Learner, out: Path, form: Format) -> list[str]:
    """Write what a learner knows to the new folder `out`; gives the names of the files."""
    require_free(out)
    with fresh_folder(out) as folder:
        WRITERS[form](learner, folder)
        write_surroundings(learner, folder, form)
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def write_peft(learner: Learner, folder: Path) -> None:
    """The adapter that answers now, as `PeftModel.from_pretrained` loads it."""
    adapter = learner.method.adapter
    if find(adapter, Modules) or not adapter.export_answering(folder):
        raise CombinationError(
            f"adapter {adapter.name!r} has no form in peft; export with --format safetensors, and answer with contune "
            "predict"
        )


def write_merged(learner: Learner, folder: Path) -> None:
    """The stock model with what was learned added to its weights, as `AutoModel.from_pretrained` loads it."""
    adapter = learner.method.adapter
    if find(adapter, Modules) or not adapter.merge():
        raise CombinationError(
            f"adapter {adapter.name!r} is no change of the model's weights, so it cannot be merged into them; export with "
            "--format peft or safetensors"
        )
    where, _ = source.locate(learner.backbone.config.path)
    if Path(where).is_dir():
        source.copy_side_files(Path(where), folder)  # what reads inputs, so that the folder stands on its own
    learner.backbone.stock.save_pretrained(str(folder))


def write_tensors(learner: Learner, folder: Path) -> None:
    """Everything the adapter and the router remember, by their own names."""
    parts = {"adapter": learner.method.adapter.state()}
    if learner.method.router is not None:
        parts["router"] = learner.method.router.state()
    save_state(State.nested(parts), folder, "adapter")


def save_state(state: State, folder: Path, name: str) -> None:
    """A state as NAME.safetensors, and NAME.json where it has values beside the tensors."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.tensors.items()}
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")
    if any(state.values.values()):
        write_json(folder / f"{name}.json", dict(state.values))


def write_surroundings(learner: Learner, folder: Path, form: Format) -> None:
    """Head, labels, router and the note that says how they go together."""
    written = Trait.WRITTEN in learner.objective.traits
    if not written:
        save_state(learner.method.head.state(), folder, "head")
        write_json(folder / "labels.json", list(learner.class_names))
    router = learner.method.router
    if router is not None and form != "safetensors":
        save_state(router.state(), folder, "router")
    backbone = learner.backbone
    note = {
        "format": 1,
        "form": form,
        "objective": learner.objective.name,
        "kind": learner.kind,
        "base_model": {"path": backbone.config.path, "sha256": learner.base_hash},
        "model": backbone.config.model_dump(),
        "feature": None if written else backbone.feature,
        "adapter": learner.method.adapter.name,
        "head": learner.method.head.name,
        "router": None if router is None else router.name,
    }
    write_json(folder / "contune.json", note)


WRITERS: Mapping[Format, Callable[[Learner, Path], Any]] = {
    "peft": write_peft,
    "merged": write_merged,
    "safetensors": write_tensors,
}
