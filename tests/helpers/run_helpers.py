"""Small runs on the digits, and what it means that two runs are the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from safetensors.torch import load_file

from contune.checks.run import tiny_model
from contune.contract.processes import Processes
from contune.engine.observer import Observer
from contune.run.config import parse_config
from contune.run.execute import resume_run, start_run


def config_text(method: object, **train: object) -> str:
    values = {
        "model": {"path": tiny_model()},
        "stream": {"data": "digits", "tasks": 5, "per_class": 24},
        "method": method,
        "train": {"epochs": 2, "batch_size": 16, "lr": 0.005, **train},
    }
    return yaml.safe_dump(values)


def run(text: str, out: Path, say: Callable[[str], None] = lambda _text: None) -> Path:
    return start_run(parse_config(text), Path.cwd(), out, processes=Processes(), observer=Observer(), say=say)


def same_run(first: Path, second: Path) -> None:
    """Results but for seconds, memory and counts, predictions, and the weights to the last bit."""
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (first, second))
    for results in (one, two):
        for key in ("train_seconds", "eval_seconds", "seconds", "peak_memory_bytes", "examples_forward", "cache_hits"):
            results["cost"].pop(key)
    assert one == two
    assert pq.read_table(first / "predictions.parquet").equals(pq.read_table(second / "predictions.parquet"))
    assert (first / "events.jsonl").read_text() == (second / "events.jsonl").read_text()
    newest = [sorted((folder / "checkpoints").iterdir())[-1] for folder in (first, second)]
    assert newest[0].name == newest[1].name
    states = [load_file(folder / "state.safetensors") for folder in newest]
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if states[0][name].numpy().tobytes() != states[1][name].numpy().tobytes()] == []


def resume(out: Path, say=lambda text: None) -> None:
    resume_run(out, processes=Processes(), observer=Observer(), say=say)
