"""A gate as a forest plot: the change of every suite with its interval, the mean below them, the margin as a line."""

from typing import Any

from contune.living.gate.decide import Verdict
from contune.run.report.colours import SERIES
from contune.run.report.figures import GRID, INK, MUTED, Plot, canvas, clean

MOST = 40  # suites and slices that are drawn; those with the smallest p first


def forest_plot(verdict: Verdict, name: str) -> Plot:
    """The plot of a verdict."""
    words = "; ".join(f"{one.name} {100 * (one.candidate - one.live):+.1f} points" for one in verdict.compared[:MOST])
    return Plot(name, f"Change of every suite in percentage points: {words}", lambda: drawn(verdict))


def drawn(verdict: Verdict, width: float = 6.4) -> Any:
    """The figure."""
    rows = sorted(verdict.compared, key=lambda one: one.p)[:MOST]
    lines = len(rows) + (verdict.mean is not None)
    figure, axes = canvas(width, 0.34 * lines + 0.9)
    axes.axvline(0, color=GRID, linewidth=1.2)
    for at, one in enumerate(rows):
        colour = SERIES[1] if one.adjusted < 0.05 else SERIES[2] if one.new else SERIES[0]
        axes.hlines(at, 100 * one.low, 100 * one.high, color=colour, linewidth=2)
        axes.plot(100 * (one.candidate - one.live), at, "s", color=colour, markersize=6)
    labels = [f"{clean(one.name, 22)} ({one.n:,}{', new' if one.new else ''})" for one in rows]
    if verdict.mean is not None and verdict.low is not None and verdict.high is not None:
        axes.hlines(len(rows), 100 * verdict.low, 100 * verdict.high, color=INK, linewidth=2)
        axes.plot(100 * verdict.mean, len(rows), "D", color=INK, markersize=7)
        labels.append("mean of earlier suites")
    axes.set(ylim=(lines - 0.4, -0.6), xlabel="change in percentage points")
    axes.set_yticks(range(lines), labels=labels)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID)
    axes.xaxis.label.set_color(MUTED)
    figure.subplots_adjust(left=0.34, right=0.98, bottom=0.55 / figure.get_figheight(), top=0.98)
    return figure
