"""Streams of tasks: what arrives, in which order."""

from contune.stream.build import load_stream
from contune.stream.builtin.registry import BUILTIN_STREAMS
from contune.stream.config import DataConfig, StreamConfig
from contune.stream.read.inputs import UnlabelledInputs, read_inputs
from contune.stream.task import Examples, Stream, Task

__all__ = [
    "BUILTIN_STREAMS",
    "DataConfig",
    "Examples",
    "Stream",
    "StreamConfig",
    "Task",
    "UnlabelledInputs",
    "load_stream",
    "read_inputs",
]
