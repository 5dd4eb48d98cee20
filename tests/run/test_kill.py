"""kill -9 at any moment: every method, resumed, ends with the results and weights of an uninterrupted run, to the bit."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_helpers import config_text, resume, run, same_run
from slow_subset import only

from contune.checks.sizes import check_options
from contune.method.catalog import class_recipes, recipes

SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["contune.run.execute", "contune.checks.run", "peft", "transformers", "sklearn"])


def newest(out: Path) -> str:
    """The name of the newest checkpoint: lesson and step."""
    return max((folder.name for folder in (out / "checkpoints").glob("0*")), default="")


def killed(work: Callable[..., object], arguments: tuple[object, ...], out: Path, experience: int) -> str:
    """Run in another process, kill it as soon as a checkpoint of `experience` or later is there; what was there then."""
    process = SPAWN.Process(target=work, args=arguments)
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline and not newest(out)[:5] >= f"{experience:05d}":
        time.sleep(0.001)
    process.kill()
    process.join()
    return newest(out)


@pytest.mark.parametrize(
    "method", only(["er", "l2p", "ranpac"], class_recipes())
)  # each resumes to the bit in the common checks as well
def test_killed_twice_it_ends_with_the_same_bits(tmp_path: Path, method: str) -> None:
    text = config_text({"name": method, **check_options(method)}, min_steps=0, checkpoint_steps=2)
    whole, out = run(text, tmp_path / "whole"), tmp_path / "killed"
    places = [killed(run, (text, out), out, 1), killed(resume, (out,), out, 3)]
    assert places[0]
    if recipes()[method]().train.get("epochs", 1):
        assert any(not place.startswith("00005") for place in places), f"every kill came too late: {places}"
    resume(out)
    same_run(whole, out)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    text = config_text("lora", epochs=200)
    (tmp_path / "config.yaml").write_text(text)
    out = tmp_path / "run"
    command = [sys.executable, "-m", "contune", "run", str(tmp_path / "config.yaml"), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not (out / "events.jsonl").exists() or '"loss"' not in (out / "events.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"contune resume {out}" in " ".join(said.split())
    assert newest(out)
