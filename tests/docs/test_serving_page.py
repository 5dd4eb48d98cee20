"""The page about serving: its blocks are run against a server of their own."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from contune.checks.settings.texts import text_model
from contune.cli import app

ROOT = Path(__file__).parents[2]


def started(words: list[str], port: int) -> subprocess.Popen[bytes]:
    """The server of the page at another port, once it is ready."""
    import httpx

    words = [str(port) if word == "8000" else word for word in words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen([sys.executable, "-m", *words], env=environment, stderr=subprocess.DEVNULL)
    for _ in range(900):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                break
        except httpx.TransportError:
            assert process.poll() is None
        time.sleep(0.1)
    return process


class Reader:
    """Somebody who does what the page says: a server, what was printed last, and the names of the Python blocks."""

    def __init__(self, port: int) -> None:
        self.port, self.scope, self.printed = port, dict[str, Any](), list[Any]()
        self.process: subprocess.Popen[bytes] | None = None

    def python(self, block: str) -> None:
        exec(compile(block, "docs/serving.md", "exec"), self.scope)

    def json(self, block: str) -> None:
        """What the page shows has the form and the label of what was printed."""
        shown, printed = json.loads(block), self.printed[-1]
        assert list(shown) == list(printed)
        assert list(shown["answers"][0]) == list(printed["answers"][0])
        assert shown["answers"][0]["label"] == printed["answers"][0]["label"]

    def bash(self, block: str) -> None:
        for line in block.splitlines():
            words = shlex.split(line.replace("$MODEL", text_model()))
            if words[:2] == ["contune", "serve"]:
                self.process = started(words, self.port)
            elif words[0] == "curl":
                done = subprocess.run(words, capture_output=True, check=True, timeout=60)
                self.printed.append(json.loads(done.stdout))
            else:
                made = CliRunner().invoke(app, words[1:])
                assert made.exit_code == 0, f"{line}: {made.output} {made.exception}"


def test_the_blocks_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fastapi", "uvicorn", "httpx"):
        pytest.importorskip(name)
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    monkeypatch.chdir(tmp_path)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        reader = Reader(found.getsockname()[1])
    page = (ROOT / "docs" / "serving.md").read_text()
    page = page.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{reader.port}")
    try:
        for language, block in re.findall(r"```(python|bash|json)\n(.*?)```", page, re.DOTALL):
            getattr(reader, language)(block)
        assert reader.scope["said"].json()["kept"] == "text"
        assert reader.printed[-1] == {"version": 1}
        assert "/v1/predict" in {route.path for route in reader.scope["application"].routes}
    finally:
        if reader.process is not None:
            reader.process.terminate()
            assert reader.process.wait(timeout=60) == 0


def test_the_page_names_every_route() -> None:
    pytest.importorskip("fastapi")
    from contune.serve.openai.routes import WrittenRoutes
    from contune.serve.routes import Routes

    page = (ROOT / "docs" / "serving.md").read_text()
    for _, path, *_ in [*Routes(None).table(), *WrittenRoutes(None).table()]:  # type: ignore[arg-type]
        assert f"{path.removeprefix('/admin/')}`" in page or path == "/style.css"
