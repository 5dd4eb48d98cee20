"""Two processes agree with one: the gradient of a step, the predictions, and closed-form heads exactly."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import gradient_worker
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from run_helpers import run
from safetensors.torch import load_file
from slow_subset import only

from contune.checks.run import tiny_model


def free_port() -> int:
    with socket.socket() as retention_set:
        retention_set.bind(("127.0.0.1", 0))
        return int(retention_set.getsockname()[1])


def launch(count: int, *work: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port"]
    command += [str(free_port()), *work]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("method", only(["ranpac"], ["lora", "er", "ranpac"]))
def test_two_processes_agree_with_one(tmp_path: Path, method: str) -> None:
    values = {
        "model": {"path": tiny_model()},
        "stream": {"data": "digits", "tasks": 5, "per_class": 24},
        "method": {"name": method, **({"form": "small"} if method == "ranpac" else {})},
        "train": {"epochs": 1, "batch_size": 16, "lr": 0.002, "optimizer": "sgd"},
        "device": "cpu",
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    outs = [tmp_path / "one", tmp_path / "two"]
    run(config.read_text(), outs[0])
    launch(2, "-m", "contune", "run", str(config), "--out", str(outs[1]), "-q")
    tables = [pq.read_table(out / "predictions.parquet").to_pydict()["prediction"] for out in outs]
    different = sum(a != b for a, b in zip(*tables, strict=True))
    assert different <= (0 if method == "ranpac" else 0.002 * len(tables[0]))
    states = [load_file(sorted((out / "checkpoints").iterdir())[-1] / "state.safetensors") for out in outs]
    scale = max(float(tensor.abs().max()) for tensor in states[0].values())
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            assert float((tensor - states[1][name]).abs().max()) <= 1e-5 * scale, name
    assert all(json.loads((out / "results.json").read_text())["finished"] for out in outs)


@pytest.mark.parametrize("method", only(["er"], ["lora", "er"]))
def test_the_gradient_of_every_step_is_that_of_one_process(tmp_path: Path, method: str) -> None:
    outs = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    gradient_worker.main(tiny_model(), method, str(outs[0]))
    launch(2, str(Path(gradient_worker.__file__)), tiny_model(), method, str(outs[1]))
    one, two = (load_file(out) for out in outs)
    steps = {name.split("|")[0] for name in one}
    assert len(steps) == 8
    for step in steps:
        names = [name for name in one if name.startswith(f"{step}|")]
        whole = torch.cat([one[name].flatten() for name in names])
        shared = torch.cat([two[name].flatten() for name in names])
        assert float((whole - shared).norm()) <= 1e-6 * float(whole.norm()), step
