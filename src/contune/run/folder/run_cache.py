"""What several runs in one process share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from contune.engine.kept.cache import MemoryCache
from contune.stream.build import load_stream
from contune.stream.config import StreamConfig
from contune.stream.task import Stream


@final
@dataclass
class RunCache:
    """What runs one after another in a process have in common: the stream they read, and results of frozen models.

    The shelf files results under what they depend on, so that runs with another model or preprocessing do not meet.
    """

    memory_cache: MemoryCache = field(default_factory=MemoryCache)
    _stream: tuple[StreamConfig, Path, Stream] | None = None

    def stream(self, config: StreamConfig, base: Path) -> Stream:
        """The stream of this configuration, read again only where the run before had another."""
        if self._stream is None or self._stream[:2] != (config, base):
            self._stream = config, base, load_stream(config, base=base)
        return self._stream[2]
