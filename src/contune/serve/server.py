"""A server that listens, and on SIGTERM answers what it has taken on before it ends."""

import signal
from pathlib import Path
from typing import Any

from contune.serve.access import require_private
from contune.serve.app import app
from contune.serve.limits import Limits

DRAIN_SECONDS = 30


def serve(
    folder: Path, host: str = "127.0.0.1", port: int = 8000, *, token: str | None = None, limits: Limits, **changes: Any
) -> None:
    """Answer until SIGTERM or SIGINT; the folder is loaded before anything listens."""
    import uvicorn

    require_private(host, token)
    made = app(folder, token=token, limits=limits, **changes)
    options: dict[str, Any] = {"timeout_graceful_shutdown": DRAIN_SECONDS, "server_header": False, "access_log": False}
    # uvicorn raises the signal again once it has drained; that was the end that was asked for, and no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.Server(uvicorn.Config(made, host=host, port=port, log_level="warning", **options)).run()
