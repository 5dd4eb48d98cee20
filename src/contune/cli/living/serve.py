"""The command that lets a living model answer over HTTP: `serve`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from contune.cli.living.common import Model, note
from contune.cli.options import Plugin
from contune.cli.plugins import load_plugins
from contune.errors import ConfigError

NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def serve(
    folder: Model,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 8000,
    host: Annotated[
        str, typer.Option(help="The address to listen at; beyond this machine only with a token.")
    ] = "127.0.0.1",
    token_file: Annotated[
        Path | None, typer.Option(help="A file with a token, which every request but /health must show.")
    ] = None,
    window: Annotated[
        float, typer.Option(min=0, max=10_000, help="Milliseconds that a batch waits for more requests.")
    ] = 5.0,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default="as the model was made")
    ] = None,
    plugin: Plugin = None,
) -> None:
    """Answer over HTTP with the live version. When another command moves it, the server follows between two batches.

    Example: contune serve support/ --port 8000

    curl -H 'Content-Type: application/json' -d '{"inputs": ["my parcel is late"]}' http://127.0.0.1:8000/v1/predict

    POST /v1/predict answers texts; POST /v1/feedback takes right labels for the next update; GET /v1/versions, /ready and
    /metrics say how it stands; POST /admin/promote, /admin/rollback and /admin/reload move versions; / is a page to look at.

    A version that cannot be loaded never takes another one's place. SIGTERM answers what waits, then ends with exit code 0.
    For other machines: contune serve support/ --host 0.0.0.0 --token-file token.txt, behind a proxy that speaks TLS.
    """
    require_extra()
    load_plugins(plugin)
    from contune.serve.access import read_token, require_private
    from contune.serve.limits import Limits
    from contune.serve.server import serve as listen

    token = None if token_file is None else read_token(token_file)
    require_private(host, token)
    changes = {} if device is None else {"device": device}
    shown = f"[{host}]" if ":" in host else host
    note(f"{folder} at http://{shown}:{port}" + (" for whoever shows the token" if token else ""))
    listen(folder, host, port, token=token, limits=Limits(window=window / 1000), **changes)


def require_extra() -> None:
    """Say what to install where something is missing."""
    missing = [name.replace("_", "-") for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"contune serve needs {', '.join(missing)}; install it with: pip install 'contune[serve]'")
