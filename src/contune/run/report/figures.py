"""The plots of a report, drawn by matplotlib without a display, as SVG for the page and as files.

Every plot is drawn in the light page's colours. On the page those colours become CSS variables, so that the plots
follow the reader's dark mode; text stays text, in the page's own font.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from contune.metric.estimate import estimate
from contune.metric.matrix import Matrix, average_accuracy
from contune.run.report.colours import HEAT, SERIES, heat_colour, ink_on
from contune.run.report.compare import MethodRuns

INK, MUTED, GRID, PAPER = "#1c2127", "#5c6670", "#d9dee3", "#fffffe"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--series-{number + 1}" for number, colour in enumerate(SERIES)
}
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MOST_NUMBERED = 12
SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    # A class named "$x$" is a name, not a formula.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}


@final
@dataclass(frozen=True)
class Plot:
    """One plot: a file name, what it shows in words for those who cannot see it, and how to draw it."""

    name: str
    alt: str
    draw: Callable[[], Any]


def clean(text: str, most: int = 26) -> str:
    """A name fit for a plot: one line, no control characters, a long one cut in the middle.

    The end stays because that is where the settings stand that tell two groups of one method apart.

    >>> clean("o-lora (rank 8, strength 0.5)", most=20)
    'o-lora (ra…ngth 0.5)'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[: most // 2]}…{line[len(line) - (most - most // 2 - 1) :]}"


def series_style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the series with this number; the three cycles differ, so no two look alike."""
    return {
        "color": SERIES[number % len(SERIES)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number // len(SERIES) % len(DASHES)],
    }


@contextmanager
def _style(salt: str) -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": salt}), warnings.catch_warnings():
        # Emoji and scripts that the plot's font lacks are drawn by the browser.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield


def inline_svg(plot: Plot) -> str:
    """The plot as an `<svg>` element for an HTML page: themed by CSS variables, labelled, unique ids, no metadata."""
    with _style(plot.name):
        figure = plot.draw()
        width = 96 * figure.get_figwidth()
        svg = _save(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = frozenset(re.findall(r'(?:url\(#|xlink:href="#)([^)"]+)', svg))
    # Tags only: what stands between them are names, which may look like anything.
    svg = re.sub(r"<[^>]+>", lambda tag: _page_tag(tag[0], plot.name, used), svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    _, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    label = f'role="img" aria-label="{_attribute(plot.alt)}"'
    return f'<svg {label} style="max-width:{width:.0f}px" {box[0]}>{rest}'


def _page_tag(tag: str, name: str, used: frozenset[str]) -> str:
    """One tag in the page's colours and font; ids are shared by the whole page, so they get the plot's name or go."""
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var({variable})")
    tag = tag.replace("'DejaVu Sans', sans-serif", "var(--font)")
    tag = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", tag)
    return re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", tag)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _save(figure: Any, form: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    figure.savefig(buffer, format=form, dpi=200, metadata=metadata, transparent=form == "svg", facecolor=PAPER)
    return buffer.getvalue()


def write_plot(plot: Plot, folder: Path) -> list[Path]:
    """Write the plot as `<name>.svg` and `<name>.png` into `folder`."""
    from contune._files import write_bytes

    written = []
    for form in ("svg", "png"):
        with _style(plot.name):
            figure = plot.draw()
            path = folder / f"{plot.name}.{form}"
            write_bytes(path, _save(figure, form))
        written.append(path)
    return written


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches with one plot in it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def heat_map(
    values: Matrix, *, title: str = "", across: str = "measured on task", down: str = "after learning task",
    width: float = 4.6, bar: bool = False,
) -> Any:  # fmt: skip
    """Shares from 0 to 1 as colours, with numbers up to 12 tasks; what is None stays empty."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    cells = np.array([[np.nan if value is None else value for value in row] for row in values], dtype=np.float64)
    rows, columns = cells.shape
    figure, axes = canvas(width, width * (0.9 if not title else 0.95))
    colours = LinearSegmentedColormap.from_list("heat", HEAT)
    masked = np.ma.masked_invalid(cells)
    if columns <= MOST_NUMBERED:
        edges = {"edgecolors": PAPER, "linewidth": 1.2}
        drawn = axes.pcolormesh(np.arange(columns + 1) + 0.5, np.arange(rows + 1) + 0.5, masked, cmap=colours, vmin=0,
                                vmax=1, **edges)  # fmt: skip
        _numbers(axes, cells, width)
    else:
        # One embedded image of a pixel per cell: 2,500 rectangles would weigh half a megabyte.
        extent = (0.5, columns + 0.5, rows + 0.5, 0.5)
        drawn = axes.imshow(masked, cmap=colours, vmin=0, vmax=1, extent=extent, interpolation="none", aspect="auto")
    axes.set(xlim=(0.5, columns + 0.5), ylim=(rows + 0.5, 0.5), xlabel=across, ylabel=down)
    for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_major_locator(MaxNLocator(min(count, 10), integer=True, min_n_ticks=1))
        if count <= MOST_NUMBERED:
            axis.set_ticks(range(1, count + 1))
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    if title:
        figure.suptitle(clean(title, round(10 * width)), y=0.985, fontsize=10.5, fontweight="bold")
    figure.subplots_adjust(left=0.5 / width, right=0.83 if bar else 0.985, bottom=0.02, top=0.81 if title else 0.86)
    if bar:
        scale = figure.colorbar(drawn, cax=figure.add_axes((0.86, 0.02, 0.025, 0.79 if title else 0.84)))
        scale.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"], fontsize=7.5)
        scale.outline.set_visible(False)
    return figure


def _numbers(axes: Any, cells: NDArray[np.float64], width: float) -> None:
    # A third of a cell's width in points leaves room for three digits.
    size = min(10.5, 0.36 * 72 * 0.86 * width / cells.shape[1])
    for (row, column), value in np.ndenumerate(cells):
        if not np.isnan(value):
            axes.text(column + 1, row + 1, f"{100 * value:.0f}", ha="center", va="center_baseline", fontsize=size,
                      color=ink_on(heat_colour(float(value))))  # fmt: skip


def mean_matrix(group: MethodRuns) -> list[list[float | None]]:
    """The accuracy matrix averaged over a group's runs, task positions kept."""
    rows = min(len(run.matrix) for run in group.runs)
    return [
        [estimate(run.matrix[i][j] for run in group.runs).mean for j in range(group.runs[0].tasks)] for i in range(rows)
    ]


def accuracy_over_tasks(
    groups: Sequence[MethodRuns], styles: Sequence[int], joint: MethodRuns | None, width: float = 5.4
) -> Any:
    """Average accuracy on the tasks seen so far, after each task; a band of ± one deviation over runs."""
    figure, axes = canvas(width, width * 0.56)
    tasks = max(group.runs[0].tasks for group in groups)
    for group, number in zip(groups, styles, strict=True):
        rows = range(1, min(len(run.matrix) for run in group.runs) + 1)
        points = [estimate(average_accuracy(run.matrix, k) for run in group.runs) for k in rows]
        centre = np.array([np.nan if point.mean is None else point.mean for point in points])
        spread = np.array([point.deviation or 0.0 for point in points])
        style = series_style(number)
        axes.plot(rows, centre, label=clean(group.label), linewidth=2, markersize=5 if tasks <= 20 else 0, **style)
        if spread.any():
            axes.fill_between(rows, centre - spread, centre + spread, color=style["color"], alpha=0.18, linewidth=0)
    _joint_line(axes, joint)
    axes.set(xlim=(0.6, tasks + 0.4), xlabel="tasks learned", ylabel="average accuracy on tasks seen")
    _percent_axis(axes.yaxis)
    _whole_axis(axes, tasks)
    axes.grid(axis="y")
    _legend(figure, always=False)
    return figure


def _joint_line(axes: Any, joint: MethodRuns | None) -> None:
    bound = joint.metrics["average_accuracy"].mean if joint is not None else None
    if bound is not None:
        axes.axhline(bound, color=MUTED, linewidth=1.5, linestyle=(0, (4, 3)), label="joint training")


def _percent_axis(axis: Any, limits: tuple[float, float] = (0.0, 1.0)) -> None:
    axis.axes.set(**{f"{axis.axis_name}lim": (limits[0], limits[1] + 0.04 * (limits[1] - limits[0]))})
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _whole_axis(axes: Any, tasks: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    if tasks <= MOST_NUMBERED:
        axes.set_xticks(range(1, tasks + 1))


def _legend(figure: Any, always: bool = True) -> None:
    """A legend above the plot, where it hides no line; none for a single line unless `always`."""
    labels = figure.axes[0].get_legend_handles_labels()[1]
    shown = always or len(labels) > 1
    across = 2 if len(labels) > 1 and max(map(len, labels)) <= 20 else 1
    above = 0.22 * -(-len(labels) // across) if shown else 0.0
    height = figure.get_figheight() + above
    figure.set_figheight(height)
    figure.subplots_adjust(left=0.15, right=0.985, bottom=0.52 / height, top=1 - (above + 0.18) / height)
    if shown:
        figure.legend(loc="upper left", bbox_to_anchor=(0.12, 1.0), ncols=across, frameon=False, handlelength=2.8,
                      borderaxespad=0.15, labelspacing=0.35)  # fmt: skip


def learned_and_final(learned: Sequence[float | None], final: Sequence[float | None], width: float = 5.4) -> Any:
    """For each task how well it was learned and what is left of it; the line between the two is what was lost."""
    figure, axes = canvas(width, width * 0.5)
    tasks = range(1, len(final) + 1)
    first = np.array([np.nan if value is None else value for value in learned])
    last = np.array([np.nan if value is None else value for value in final])
    size = 7 if len(final) <= 20 else 4
    axes.vlines(tasks, np.fmin(first, last), np.fmax(first, last), color=GRID, linewidth=size * 0.7)
    axes.plot(tasks, first, "o", markersize=size, markerfacecolor=PAPER, markeredgecolor=SERIES[0], markeredgewidth=1.6,
              label="right after learning it")  # fmt: skip
    axes.plot(tasks, last, "o", markersize=size, color=SERIES[1], label="at the end")
    axes.set(xlim=(0.4, len(final) + 0.6), xlabel="task", ylabel="accuracy")
    _percent_axis(axes.yaxis)
    _whole_axis(axes, len(final))
    axes.grid(axis="y")
    _legend(figure)
    return figure


def final_by_task(
    groups: Sequence[MethodRuns], styles: Sequence[int], joint: MethodRuns | None, width: float = 5.4
) -> Any:
    """Accuracy on each task at the end: how much is left of the first tasks, and how well the last were learned."""
    figure, axes = canvas(width, width * 0.56)
    tasks = max(group.runs[0].tasks for group in groups)
    shown = [(group, series_style(number)) for group, number in zip(groups, styles, strict=True)]
    if joint is not None:
        shown.append((joint, {"color": MUTED, "linestyle": (0, (4, 3)), "marker": ""}))
    for group, style in shown:
        last = mean_matrix(group)[-1]
        values = [np.nan if value is None else value for value in last]
        label = "joint training" if group is joint else clean(group.label)
        marked = 5 if tasks <= 20 else 0
        axes.plot(range(1, len(values) + 1), values, label=label, linewidth=1.8, markersize=marked, **style)
    axes.set(xlim=(0.6, tasks + 0.4), xlabel="task, in order of arrival", ylabel="accuracy at the end")
    _percent_axis(axes.yaxis)
    _whole_axis(axes, tasks)
    axes.grid(axis="y")
    _legend(figure)
    return figure


def learned_and_kept(
    groups: Sequence[MethodRuns], styles: Sequence[int], joint: MethodRuns | None, width: float = 5.4
) -> Any:
    """One row a method: learning accuracy (hollow), average accuracy at the end (filled), the loss between them."""
    labels = [clean(group.label, 24) for group in groups]
    height = 0.42 * len(groups) + 1.05
    figure, axes = canvas(width, height)
    lowest = 1.0
    for row, (group, number) in enumerate(zip(groups, styles, strict=True)):
        colour = series_style(number)["color"]
        learned, kept = group.metrics["learning_accuracy"], group.metrics["average_accuracy"]
        if learned.mean is None or kept.mean is None:
            continue
        axes.hlines(row, kept.mean, learned.mean, color=colour, alpha=0.35, linewidth=5)
        for estimated, filling in ((learned, PAPER), (kept, colour)):
            # Single runs are thin ticks, so that the spread over seeds can be seen.
            axes.plot(estimated.values, [row] * estimated.n, "|", color=colour, markersize=11, alpha=0.6)
            axes.plot(estimated.mean, row, "o", markersize=8, markerfacecolor=filling, markeredgecolor=colour,
                      markeredgewidth=1.8)  # fmt: skip
        lowest = min(lowest, *kept.values, *learned.values)
    bound = joint.metrics["average_accuracy"].mean if joint is not None else None
    if bound is not None:
        axes.axvline(bound, color=MUTED, linewidth=1.5, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate("joint", (bound, 1), xytext=(0, 2), xycoords=("data", "axes fraction"), color=MUTED, ha="center",
                      textcoords="offset points", fontsize=8.5)  # fmt: skip
    axes.set(ylim=(len(groups) - 0.4, -0.6), xlabel="average accuracy")
    axes.set_yticks(range(len(groups)), labels=labels)
    axes.tick_params(axis="y", length=0)
    _percent_axis(axes.xaxis, (max(0.0, np.floor(10 * lowest - 0.5) / 10), 1.0))
    axes.grid(axis="x")
    left = min(0.4, (0.25 + 0.085 * max(len(label) for label in labels)) / width)
    figure.subplots_adjust(left=left, right=0.97, bottom=0.55 / height, top=1 - 0.25 / height)
    return figure


def accuracy_on_the_way(points: Sequence[tuple[int, float]], width: float = 5.4) -> Any:
    """Accuracy over all tests seen so far, by the number of examples that had come."""
    figure, axes = canvas(width, width * 0.42)
    examples, values = [count for count, _ in points], [100 * value for _, value in points]
    axes.plot(examples, values, color=SERIES[0], linewidth=1.4, marker="o" if len(points) < 25 else None, markersize=3)
    axes.set(xlabel="examples so far", ylabel="accuracy in percent", xlim=(0, max(examples)), ylim=(0, 100))
    axes.grid(axis="y")
    figure.subplots_adjust(left=0.15, right=0.985, bottom=0.22, top=0.97)
    return figure


def training_loss(losses: Sequence[float], width: float = 5.4) -> Any:
    """The logged training losses in order, at most 400 points."""
    figure, axes = canvas(width, width * 0.36)
    step = -(-len(losses) // 400)
    parts = [losses[start : start + step] for start in range(0, len(losses), step)]
    axes.plot(range(0, len(losses), step), [sum(part) / len(part) for part in parts], color=SERIES[0], linewidth=1.2)
    axes.set(xlabel="logged step", ylabel="training loss", xlim=(0, max(1, len(losses) - 1)))
    axes.set_ylim(bottom=min(0.0, *losses) if len(losses) > 1 else None)
    axes.grid(axis="y")
    figure.subplots_adjust(left=0.15, right=0.985, bottom=0.25, top=0.97)
    return figure
