"""The command: a process that listens, drains on SIGTERM, and refuses what would be unsafe in one sentence."""

import concurrent.futures
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from contune.cli import app
from contune.errors import ConfigError

SOURCES = Path(__file__).parents[2] / "src"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_sigterm_answers_what_waits(three: Path) -> None:
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    port = free_port()
    words = ["serve", str(three), "--port", str(port), "--window", "1500", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    process = subprocess.Popen(
        [sys.executable, "-m", "contune", *words], env=environment, stderr=subprocess.PIPE, text=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
                time.sleep(0.1)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            ask = [
                pool.submit(httpx.post, f"{url}/v1/predict", json={"inputs": [f"aaaa {at}"]}, timeout=30)
                for at in range(4)
            ]
            for _ in range(200):  # until all four wait in the window of one batch
                if "contune_queue_inputs 4.0" in httpx.get(f"{url}/metrics").text:
                    break
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            answered = [one.result() for one in ask]
        assert [one.status_code for one in answered] == [200] * 4
        assert process.wait(timeout=30) == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health")
        assert "Traceback" not in process.stderr.read()  # type: ignore[union-attr]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()  # type: ignore[union-attr]


def test_what_is_unsafe_or_missing_is_one_sentence(three: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("short")
    for words, said in (
        ([three, "--host", "0.0.0.0"], "--token-file"),
        ([three, "--token-file", tmp_path / "token"], "at least 16"),
        ([three, "--token-file", tmp_path / "none"], "cannot be read"),
    ):
        found = CliRunner().invoke(app, ["serve", *map(str, words)]).exception
        assert isinstance(found, ConfigError)
        assert said in str(found)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    command = importlib.import_module("contune.cli.living.serve")
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvicorn" else real(name))
    found = CliRunner().invoke(app, ["serve", str(tmp_path)]).exception
    assert isinstance(found, ConfigError)
    assert "uvicorn" in str(found)
    assert "pip install 'contune[serve]'" in str(found)


def test_help_teaches() -> None:
    text = " ".join(CliRunner().invoke(app, ["serve", "--help"]).output.split())
    for said in ("/v1/predict", "curl", "SIGTERM", "--token-file"):
        assert said in text


def test_the_commands_in_deploy_are_commands() -> None:
    """Options that the image and the unit give are there, and the unit waits longer than the server drains."""
    pytest.importorskip("fastapi")
    from contune.serve.server import DRAIN_SECONDS

    image = (SOURCES.parent / "deploy" / "Dockerfile").read_text()
    unit = (SOURCES.parent / "deploy" / "contune-serve.service").read_text()
    entry, words = (
        json.loads(line.split(" ", 1)[1]) for line in image.splitlines() if line.startswith(("ENTRY", "CMD"))
    )
    (line,) = (line for line in unit.splitlines() if line.startswith("ExecStart="))
    described = " ".join(CliRunner().invoke(app, ["serve", "--help"]).output.split())
    for given in ([*entry, *words], ["contune", *line.split()[1:]]):
        assert given[:2] == ["contune", "serve"]
        options = [word for word in given if word.startswith("--")]
        assert "--token-file" in options
        assert [word for word in options if word not in described] == []
    (seconds,) = (line.partition("=")[2] for line in unit.splitlines() if line.startswith("TimeoutStopSec="))
    assert int(seconds) > DRAIN_SECONDS
