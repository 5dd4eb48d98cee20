"""The cost ledger: what was computed, counted where it happens, so that a claim can be checked by counting."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final


@final
@dataclass
class Ledger:
    """Counts and seconds of one run.

    `examples_forward`: examples that went through at least one layer of the backbone without gradients.
    `examples_backward`: examples of gradient steps.
    `cache_hits`: rows of batches that were read from the store of frozen results.
    `seconds`: wall time by phase, outermost phase only.
    """

    examples_forward: int = 0
    examples_backward: int = 0
    cache_hits: int = 0
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    _open: list[str] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's wall time to `name`, unless a phase is open already."""
        started = time.perf_counter()
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()
            if not self._open:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            self.peak_memory_bytes = max(self.peak_memory_bytes, peak_memory())

    def values(self) -> dict[str, Any]:
        """The ledger as plain JSON values."""
        return {
            "examples_forward": self.examples_forward,
            "examples_backward": self.examples_backward,
            "cache_hits": self.cache_hits,
            "steps": self.steps,
            "peak_memory_bytes": max(self.peak_memory_bytes, peak_memory()),
            "seconds": dict(self.seconds),
        }

    def load(self, values: Mapping[str, Any]) -> None:
        """Go on counting from what an earlier process counted."""
        self.examples_forward = int(values["examples_forward"])
        self.examples_backward = int(values["examples_backward"])
        self.cache_hits = int(values["cache_hits"])
        self.steps = int(values["steps"])
        self.peak_memory_bytes = int(values["peak_memory_bytes"])
        self.seconds = {name: float(seconds) for name, seconds in values["seconds"].items()}


def peak_memory() -> int:
    """Most memory this process has held, in bytes; on a GPU, the most that torch has allocated there."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
