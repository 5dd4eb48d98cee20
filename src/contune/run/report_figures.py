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
from contune.run.compare import Group
from contune.run.palette import HEAT, SERIES, heat_colour, ink_on

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
    "font.size": 9.5,
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


def clean(text: str, most: int = 28) -> str:
    """A name fit for a plot: one line, no control characters, cut with an ellipsis."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


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
        width = figure.get_figwidth() * 96
        svg = _save(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = _own_ids(svg, plot.name)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--font)", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    head = f'<svg role="img" aria-label="{_attribute(plot.alt)}" style="max-width:{width:.0f}px"'
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', rf"{_literal(head)} \1", svg, count=1).replace(
        ' height="', ' data-h="', 1
    )


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\")


def _own_ids(svg: str, name: str) -> str:
    """Drop ids nothing refers to, and put the plot's name before the others: ids are shared by the whole page."""
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    return re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)


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


def _canvas(width: float, height: float) -> tuple[Any, Any]:
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
    figure, axes = _canvas(width, width * (0.9 if not title else 0.95))
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
        figure.suptitle(clean(title, 40), y=0.985, fontsize=10.5, fontweight="bold")
    figure.subplots_adjust(left=0.5 / width, right=0.88 if bar else 0.985, bottom=0.02, top=0.81 if title else 0.86)
    if bar:
        scale = figure.colorbar(drawn, cax=figure.add_axes((0.91, 0.02, 0.025, 0.79 if title else 0.84)))
        scale.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"], fontsize=7.5)
        scale.outline.set_visible(False)
    return figure


def _numbers(axes: Any, cells: NDArray[np.float64], width: float) -> None:
    size = min(10.0, 26 * width / cells.shape[1] ** 0.9 / 2.6)
    for (row, column), value in np.ndenumerate(cells):
        if not np.isnan(value):
            axes.text(column + 1, row + 1, f"{100 * value:.0f}", ha="center", va="center_baseline", fontsize=size,
                      color=ink_on(heat_colour(float(value))))  # fmt: skip


def mean_matrix(group: Group) -> list[list[float | None]]:
    """The accuracy matrix averaged over a group's runs, task positions kept."""
    rows = min(len(run.matrix) for run in group.runs)
    return [
        [estimate(run.matrix[i][j] for run in group.runs).mean for j in range(group.runs[0].tasks)] for i in range(rows)
    ]


def accuracy_over_tasks(groups: Sequence[Group], styles: Sequence[int], joint: Group | None, width: float = 6.4) -> Any:
    """Average accuracy on the tasks seen so far, after each task; a band of ± one deviation over runs."""
    figure, axes = _canvas(width, width * 0.56)
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
    _legend(figure, len(groups) + (joint is not None))
    return figure


def _joint_line(axes: Any, joint: Group | None) -> None:
    bound = joint.metrics["average_accuracy"].mean if joint is not None else None
    if bound is not None:
        axes.axhline(bound, color=MUTED, linewidth=1.5, linestyle=(0, (4, 3)), label="joint: all tasks at once")


def _percent_axis(axis: Any, limits: tuple[float, float] = (0.0, 1.0)) -> None:
    axis.axes.set(**{f"{axis.axis_name}lim": (limits[0], limits[1] + 0.02 * (limits[1] - limits[0]))})
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _whole_axis(axes: Any, tasks: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    if tasks <= MOST_NUMBERED:
        axes.set_xticks(range(1, tasks + 1))


def _legend(figure: Any, entries: int) -> None:
    """Above the plot, where it hides no line."""
    across = 2 if entries > 1 else 1
    lines = -(-entries // across)
    height = figure.get_figheight() + 0.22 * lines
    figure.set_figheight(height)
    figure.subplots_adjust(left=0.115, right=0.985, bottom=0.5 / height, top=1 - (0.22 * lines + 0.18) / height)
    figure.legend(loc="upper left", bbox_to_anchor=(0.1, 1.0), ncols=across, frameon=False, handlelength=2.8,
                  borderaxespad=0.15, labelspacing=0.35)  # fmt: skip


def learned_and_final(learned: Sequence[float | None], final: Sequence[float | None], width: float = 6.4) -> Any:
    """For each task how well it was learned and what is left of it; the line between the two is what was lost."""
    figure, axes = _canvas(width, width * 0.5)
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
    _legend(figure, 2)
    return figure


def final_by_task(groups: Sequence[Group], styles: Sequence[int], joint: Group | None, width: float = 6.4) -> Any:
    """Accuracy on each task at the end: how much is left of the first tasks, and how well the last were learned."""
    figure, axes = _canvas(width, width * 0.56)
    tasks = max(group.runs[0].tasks for group in groups)
    shown = [(group, series_style(number)) for group, number in zip(groups, styles, strict=True)]
    if joint is not None:
        shown.append((joint, {"color": MUTED, "linestyle": (0, (4, 3)), "marker": ""}))
    for group, style in shown:
        last = mean_matrix(group)[-1]
        values = [np.nan if value is None else value for value in last]
        label = "joint: all tasks at once" if group is joint else clean(group.label)
        marked = 5 if tasks <= 20 else 0
        axes.plot(range(1, len(values) + 1), values, label=label, linewidth=1.8, markersize=marked, **style)
    axes.set(xlim=(0.6, tasks + 0.4), xlabel="task, in order of arrival", ylabel="accuracy at the end")
    _percent_axis(axes.yaxis)
    _whole_axis(axes, tasks)
    axes.grid(axis="y")
    _legend(figure, len(shown))
    return figure


def learned_against_final(
    groups: Sequence[Group], styles: Sequence[int], joint: Group | None, width: float = 6.4
) -> Any:
    """Learning accuracy across, final average accuracy up; the height below the diagonal is what was forgotten."""
    figure, axes = _canvas(width, width * 0.56)
    points = []
    for group, number in zip(groups, styles, strict=True):
        learned, final = group.metrics["learning_accuracy"], group.metrics["average_accuracy"]
        if learned.mean is None or final.mean is None:
            continue
        style = series_style(number) | {"linestyle": "none"}
        for run_learned, run_final in zip(learned.values, final.values, strict=False):
            axes.plot(run_learned, run_final, marker=style["marker"], markersize=4, color=style["color"], alpha=0.45,
                      linestyle="none")  # fmt: skip
        axes.plot(learned.mean, final.mean, markersize=10, markeredgecolor=PAPER, label=clean(group.label), **style)
        points += [*learned.values, *final.values]
    low = max(0.0, min([*points, 0.9]) - 0.06)
    axes.plot([low, 1], [low, 1], color=MUTED, linewidth=1)
    axes.text(low + 0.03 * (1 - low), low + 0.06 * (1 - low), "nothing forgotten", color=MUTED, fontsize=8.5,
              rotation=29, rotation_mode="anchor")  # fmt: skip
    _joint_line(axes, joint)
    axes.set(xlabel="learning accuracy: right after each task", ylabel="average accuracy at the end")
    _percent_axis(axes.xaxis, (low, 1))
    _percent_axis(axes.yaxis, (low, 1))
    axes.grid()
    _legend(figure, len(groups) + (joint is not None))
    return figure


def training_loss(losses: Sequence[float], width: float = 6.4) -> Any:
    """The logged training losses in order, at most 400 points."""
    figure, axes = _canvas(width, width * 0.36)
    step = -(-len(losses) // 400)
    parts = [losses[start : start + step] for start in range(0, len(losses), step)]
    axes.plot(range(0, len(losses), step), [sum(part) / len(part) for part in parts], color=SERIES[0], linewidth=1.2)
    axes.set(xlabel="logged step", ylabel="training loss", xlim=(0, max(1, len(losses) - 1)))
    axes.set_ylim(bottom=min(0.0, *losses) if len(losses) > 1 else None)
    axes.grid(axis="y")
    figure.subplots_adjust(left=0.115, right=0.985, bottom=0.21, top=0.97)
    return figure
