"""The start page: what answers now, all versions with what the gate said, traffic and latency. Readable without a script."""

from collections.abc import Sequence
from typing import Any

from contune.living.history import Row
from contune.living.pages.page import BADGES, headline
from contune.run.report.page import render_page
from contune.serve.service import Service


def render_start(service: Service, rows: Sequence[Row]) -> str:
    """The page as HTML. All rules of its look are in /style.css, because the policy of the page allows no other."""
    measures = service.measures
    values = {
        "title": service.name,
        "sentences": headline(rows, next(row for row in rows if row.live)),
        "standing": service.standing(),
        "rows": list(reversed(rows)),
        "badges": BADGES,
        "counts": measures.by_version,
        "tiles": tiles(service),
    }
    return render_page("contune.serve", "start.html.j2", values, "")


def tiles(service: Service) -> list[tuple[str, str, str]]:
    """Figures: the value, its name, and what it is of."""
    measures, latency = service.measures, service.measures.latency()
    seconds = ("–", "–") if latency is None else tuple(f"{1000 * one:.1f} ms" for one in latency)
    answered: Any = sum(measures.by_version.values())
    return [
        (f"{answered:,}", "inputs answered", "since the server started"),
        (seconds[0], "median latency", "of the last 1,000 requests, in the server"),
        (seconds[1], "99th percentile", "of the last 1,000 requests, in the server"),
        (f"{service.batcher.waiting:,}", "inputs wait", f"at most {service.limits.queue:,}"),
    ]
