"""What is counted, for Prometheus and for the start page."""

from collections import deque
from collections.abc import Sequence
from typing import final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from contune.serve.keeper import Held, Reply

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
RECENT = 1_000
TEXT_TYPE: str = CONTENT_TYPE_LATEST


@final
class Measures:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self._requests = Counter("contune_requests", "Requests by route and status.", ["route", "status"], registry=own)
        self._seconds = Histogram(
            "contune_request_seconds", "Seconds a request took.", ["route"], buckets=SECONDS, registry=own
        )
        self._inputs = Counter("contune_inputs", "Inputs answered, by version.", ["version"], registry=own)
        self._batch = Histogram(
            "contune_batch_inputs", "Inputs that went through the model at once.", buckets=SIZES, registry=own
        )
        self._waiting = Gauge("contune_queue_inputs", "Inputs that wait for the model.", registry=own)
        self._version = Gauge("contune_version", "Number of the version that answers.", registry=own)
        self._swaps = Counter("contune_swaps", "Versions that took another one's place.", registry=own)
        self._failed = Counter("contune_failed_loads", "Versions that could not be loaded.", registry=own)
        self._stale = Gauge("contune_stale", "1 while the live version of the folder cannot be loaded.", registry=own)
        self._feedback = Counter("contune_feedback", "Right labels that users sent.", registry=own)
        self._seen: tuple[str, str | None] = ("", None)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.by_version: dict[int, int] = {}

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request that came to its end; `route` is one of the server's own, never what a client has made up."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, inputs: int) -> None:
        """Inputs that go through the model together."""
        self._batch.observe(inputs)

    def answered(self, reply: Reply, seconds: float) -> None:
        """A reply, and the seconds from the body's arrival to it."""
        number, count = reply.version.number, len(reply.labels)
        self._inputs.labels(str(number)).inc(count)
        self.by_version[number] = self.by_version.get(number, 0) + count
        self._recent.append(seconds)

    def feedback(self) -> None:
        """A right label."""
        self._feedback.inc()

    def followed(self, held: Held) -> None:
        """What the keeper stands at, after it may have changed."""
        before, failed = self._seen
        version, problem = held.loaded.version, held.problem
        if before and before != version.id:
            self._swaps.inc()
        if problem is not None and failed != held.tried:
            self._failed.inc()
        self._seen = version.id, None if problem is None else held.tried
        self._version.set(version.number)
        self._stale.set(problem is not None)

    def latency(self) -> tuple[float, float] | None:
        """Median and 99th percentile in seconds over the last 1,000 answered requests, None before the first."""
        return None if not self._recent else (quantile(self._recent, 0.5), quantile(self._recent, 0.99))

    def text(self, waiting: int, held: Held) -> bytes:
        """All of it in Prometheus' text format."""
        self.followed(held)
        self._waiting.set(waiting)
        text: bytes = generate_latest(self.registry)
        return text


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least a share of all do not exceed.

    >>> quantile([3.0, 1.0, 2.0], 0.5), quantile([1.0], 0.99)
    (2.0, 1.0)
    """
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
