"""States on the disk: a folder of safetensors and JSON with checksums, written whole or not at all."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from contune._files import file_sha256, sync_folder, write_json
from contune.contract.state import State
from contune.errors import RunDirectoryError


def write_state(folder: Path, state: State, position: Mapping[str, Any]) -> None:
    """Put a state and what is said about it into `folder`, replacing a state that is there."""
    home = folder.parent
    temporary = home / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.tensors.items()}
    save_file(tensors, temporary / "state.safetensors")
    write_json(temporary / "state.json", {"values": dict(state.values), "position": dict(position)})
    hashes = {item.name: file_sha256(item) for item in sorted(temporary.iterdir())}
    write_json(temporary / "manifest.json", hashes)
    for item in temporary.iterdir():
        with item.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    sync_folder(home)


def read_state(folder: Path, what: str = "checkpoint") -> tuple[State, dict[str, Any]]:
    """A state whose every file matches its checksum, and its position."""
    try:
        hashes = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, expected in hashes.items():
            if file_sha256(folder / name) != expected:
                raise RunDirectoryError(f"{what} {folder} is damaged: {name} does not match its checksum")
        values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "state.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise RunDirectoryError(f"{what} {folder} is damaged: {error}") from error
    return State(tensors, values["values"]), values["position"]
