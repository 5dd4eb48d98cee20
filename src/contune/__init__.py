"""contune keeps pretrained models learning: parameter-efficient continual fine-tuning."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contune.engine.learner import Learner as Learner
    from contune.stream.build import load_stream as load_stream
    from contune.stream.config import StreamConfig as StreamConfig
    from contune.stream.task import Examples as Examples
    from contune.stream.task import Stream as Stream
    from contune.stream.task import Task as Task

__version__ = "0.1.0"

_HOMES = {
    "Learner": "contune.engine.learner",
    "load_stream": "contune.stream.build",
    "StreamConfig": "contune.stream.config",
    "Examples": "contune.stream.task",
    "Stream": "contune.stream.task",
    "Task": "contune.stream.task",
}
__all__ = ["Examples", "Learner", "Stream", "StreamConfig", "Task", "load_stream"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import contune` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'contune' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
