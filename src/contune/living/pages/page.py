"""The page of a living model: what answers, how it came to that, and what every gate has seen. Readable without a script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, final

from contune._files import write_text
from contune.living.checking import sizes
from contune.living.config import LivingConfig
from contune.living.gate.decide import Verdict
from contune.living.gating import verdict_of
from contune.living.history import Row, answers_with_gate, difference, history
from contune.living.learning import get_answers
from contune.living.pages.forest import forest_plot
from contune.living.store.folder import Folder
from contune.numerics.paired import wilson
from contune.run.report.colours import heat_colour, ink_on
from contune.run.report.page import render_page, stylesheet
from contune.run.report.words import share

BADGES: Mapping[str | None, str] = {
    "promote": "passed",
    "blocked": "blocked",
    "not enough evidence": "unsure",
    None: "none",
}
MOST_CHANGED = 12


@final
@dataclass(frozen=True)
class Cell:
    """One suite as one version answers it: the share, how many examples, the 95 % interval, colours, and the flips since
    the version before.
    """

    told: str
    n: int
    low: str
    high: str
    background: str
    ink: str
    changed: Sequence[Any] = ()


@final
@dataclass(frozen=True)
class GateView:
    """A gate with its drawing."""

    row: Row
    verdict: Verdict
    plot: Any


def write_page(folder: Folder, config: LivingConfig, out: Path) -> Path:
    """Write the page to the file `out`, or to `report.html` in the folder `out`; gives the file."""
    path = out / "report.html" if out.is_dir() else out
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(folder, config))
    return path


def render(folder: Folder, config: LivingConfig) -> str:
    """The page as HTML."""
    rows = history(folder, config)
    live = next(row for row in rows if row.live)
    css = stylesheet() + files("contune.living.pages").joinpath("page.css").read_text(encoding="utf-8")
    suites, cells = heat_map(folder, rows)
    lines = folder.log.lines()
    gates = [
        GateView(row, verdict, forest_plot(verdict, f"gate-{row.number}"))
        for row in rows
        if (verdict := verdict_of(folder, lines, row.id)) is not None and not row.retired
    ]
    values = {
        "title": folder.path.name,
        "sentences": headline(rows, live),
        "facts": [f"{config.method if isinstance(config.method, str) else config.method.get('name', 'composed')}",
                  f"{len(rows)} versions", f"policy: learned {config.policy.buffer}, suites {config.policy.suites}"],
        "rows": rows, "badges": BADGES, "suites": suites, "cells": cells, "gates": list(reversed(gates)),
        "disk": sizes(folder), "classes": folder.version(live.id)["classes"], "share": share,
    }  # fmt: skip
    return render_page("contune.living.pages", "page.html.j2", values, css)


def headline(rows: Sequence[Row], live: Row) -> list[str]:
    """What is to be known first."""
    said = [f"Version {live.number} ({live.name}) answers, since {live.served[-1][0][:10]}."]
    if live.accuracy is not None:
        lost = (
            ""
            if live.forgetting is None
            else f"; of earlier suites it has forgotten {100 * live.forgetting:.1f} points"
        )
        said.append(f"It answers {share(live.accuracy)} of its suites rightly, each counted the same{lost}.")
    held = [row.name for row in rows if row.outcome == "blocked" and not any(row.served)]
    if held:
        said.append(f"Held back by the gate: {', '.join(held)}.")
    return said


def heat_map(folder: Folder, rows: Sequence[Row]) -> tuple[list[str], list[tuple[Row, list[Cell | None]]]]:
    """The names of all suites, and for every version that can be used its cell in each."""
    usable = [row for row in rows if not row.retired]
    order = list(dict.fromkeys(suite for row in usable for suite in folder.version(row.id)["suites"]))
    found = []
    for row in usable:
        version = folder.version(row.id)
        changed: dict[str, list[Any]] = {}
        if row.parent is not None and not rows[row.parent].retired:
            for one in difference(folder, version["parent"], row.id).changed:
                changed.setdefault(one.suite, []).append(one)
        stored = answers_with_gate(folder, version, version)
        cells = [cell(folder, suite, stored.get(suite), changed) for suite in order]
        found.append((row, cells))
    return [folder.get("suites", suite)["name"] for suite in order], found


def cell(folder: Folder, suite: str, name: str | None, changed: Mapping[str, Sequence[Any]]) -> Cell | None:
    """One suite as one version answers it; None where it was not asked."""
    if name is None:
        return None
    scores = get_answers(folder, name)["score"]
    n, mean = len(scores), sum(scores) / max(len(scores), 1)
    low, high = wilson(sum(scores), n)
    colour = heat_colour(mean)
    flips = [one for one in changed.get(folder.get("suites", suite)["name"], ()) if one.flip != "same"]
    paint = f"rgb({colour[0]} {colour[1]} {colour[2]})"
    return Cell(
        f"{100 * mean:.0f}", n, f"{100 * low:.0f}", f"{100 * high:.0f}", paint, ink_on(colour), flips[:MOST_CHANGED]
    )
