"""Runs of the command line that a benchmark starts, or goes on with."""

import json
import subprocess
import sys
from pathlib import Path

import yaml


def run_one(config: dict[str, object], out: Path) -> None:
    """Start the run, or go on with it unless it is finished; a failure is said and the others go on."""
    if finished(out):
        return
    if (out / "config.yaml").exists():
        command = ["resume", str(out), "-q"]
    else:
        file = out.with_suffix(".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(config))
        command = ["run", str(file), "--out", str(out), "-q"]
    done = subprocess.run([sys.executable, "-m", "contune", *command], check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        print(f"{out} failed with exit code {done.returncode}", file=sys.stderr)


def finished(out: Path) -> bool:
    """Whether a run has come to its end."""
    results = out / "results.json"
    return results.exists() and bool(json.loads(results.read_text())["finished"])
