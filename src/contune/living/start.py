"""Version 0: a folder that knows nothing yet, or what a finished run knows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contune._files import require_free
from contune.backbone.config import ModelConfig
from contune.errors import ConfigError, RunDirectoryError
from contune.living.config import living_config
from contune.living.learning import Workshop, require_policy
from contune.living.store.folder import Folder
from contune.living.store.sealed import digest
from contune.living.updating import root_version
from contune.run.config import read_resolved
from contune.run.folder.directory import RunDirectory


def started(path: Path, given: Mapping[str, Any], run: Path | None, changes: Sequence[str] = ()) -> Folder:
    """The new folder. Whatever does not fit is refused before it is there."""
    require_free(path)
    own = {key: value for key, value in given.items() if value is not None}
    config = living_config({**(from_run(run) if run else {}), **own}, changes)
    config = config.model_copy(update={"model": placed(config.model)})
    learner = Workshop(Folder(path), config).new()
    if learner.method.joint:
        raise ConfigError(
            f"the method {config.method!r} learns all tasks at once and cannot go on from update to update; take another"
        )
    state, classes = None, []
    if run is not None:
        state = newest(run)
        learner.load_state(state)
        require_policy(state, config.policy, config)
        classes = list(learner.class_names)
    lasting = digest({**config.lasting, "base": learner.base_hash})
    values = {"format": 1, "config": config.model_dump(mode="json"), "base_hash": learner.base_hash, "id": lasting}
    kind = "empty" if run is None else "from a run"
    return Folder.create(
        path, values, lambda folder: root_version(lasting, folder.states.put(state) if state else None, classes, kind)
    )


def placed(model: ModelConfig) -> ModelConfig:
    """The model with its folder as a whole path, so that it is found from anywhere; a hub id stays."""
    path = Path(model.path).expanduser()
    return model.model_copy(update={"path": str(path.resolve())}) if path.is_dir() else model


def from_run(run: Path) -> dict[str, Any]:
    """What a run was configured with, as far as a living model has the same keys."""
    RunDirectory.open(run)
    config, _ = read_resolved(run)
    values = config.model_dump(mode="json", exclude_unset=True)
    kept: dict[str, Any] = {key: values[key] for key in ("model", "method", "train") if key in values}
    return {
        **kept,
        "objective": config.stream.objective,
        "kind": config.stream.kind,
        "language": values["stream"].get("language"),
    }


def newest(run: Path) -> Any:
    """The state of a run's newest whole checkpoint."""
    found = RunDirectory.open(run).newest()
    if found is None or found[1]["step"]:
        raise RunDirectoryError(f"{run} has not finished a task; go on with it first: contune resume {run}")
    return found[0]
