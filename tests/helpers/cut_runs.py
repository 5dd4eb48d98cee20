"""Runs as they were before their end."""

import json
import shutil
from pathlib import Path


def cut_back(run_directory: Path) -> None:
    """As if the run had been killed right before its last checkpoint."""
    shutil.rmtree(sorted((run_directory / "checkpoints").iterdir())[-1])
    results = json.loads((run_directory / "results.json").read_text())
    (run_directory / "results.json").write_text(json.dumps({**results, "finished": False}))
