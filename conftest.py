"""Sources that need an extra are not collected where it is not installed."""

from importlib.util import find_spec

collect_ignore_glob: list[str] = []
if any(find_spec(name) is None for name in ("fastapi", "httpx", "prometheus_client", "uvicorn")):
    collect_ignore_glob += ["src/contune/serve/*.py", "src/contune/serve/openai/*.py", "tests/helpers/serving.py"]
