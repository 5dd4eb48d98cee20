"""The comparison as Markdown, CSV and LaTeX, and as tables for the terminal."""

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from contune.errors import ConfigError, did_you_mean
from contune.metric.definitions import DEFINITIONS
from contune.metric.estimate import Estimate
from contune.run.report.colours import heat_colour, ink_on
from contune.run.report.compare import HEADLINE_METRICS, Comparison, MethodRuns

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

COSTS = {
    "trainable_parameters": "Trainable parameters",
    "stored_bytes": "Stored",
    "train_seconds": "Training time",
}
MOST_CELLS = 16
NONE = "–"


def table(comparison: Comparison, form: str) -> str:
    """The comparison as text: `md`, `csv` or `latex`; raise `ConfigError` for another format.

    Accuracies are in percent with the sample standard deviation over runs behind the ±, in CSV as fractions in full
    precision with the 95 % t interval of the mean.
    """
    writers = {"md": to_markdown, "csv": to_csv, "latex": to_latex}
    if form not in writers:
        raise ConfigError(f"table format is {form!r}; {did_you_mean(form, writers)}")
    return writers[form](comparison)


def percent(value: Estimate) -> str:
    """`71.2 ± 0.8`, without the spread where it is unknown.

    >>> from contune.metric.estimate import estimate
    >>> percent(estimate([0.70, 0.72])), percent(estimate([0.5])), percent(estimate([]))
    ('71.0 ± 1.4', '50.0', '–')
    """
    return _spread(value, lambda number: f"{_zero(100 * number):.1f}")


def _zero(number: float) -> float:
    # A forgetting of -0.00004 would print as "-0.0".
    return 0.0 if abs(number) < 0.05 else number


def _spread(value: Estimate, show: Callable[[float], str]) -> str:
    if value.mean is None:
        return NONE
    return show(value.mean) if value.deviation is None else f"{show(value.mean)} ± {show(value.deviation)}"


def show_cost(key: str, value: float) -> str:
    """A cost in the unit its name tells: bytes, seconds or a count.

    >>> show_cost("stored_bytes", 1536000), show_cost("train_seconds", 125), show_cost("steps", 12345)
    ('1.5 MB', '2 min 05 s', '12,345')
    """
    if "bytes" in key:
        return show_bytes(value)
    if "seconds" in key:
        return show_seconds(value)
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"


def show_bytes(size: float) -> str:
    """Bytes in decimal units.

    >>> show_bytes(999), show_bytes(999_999), show_bytes(2.5e9)
    ('999 B', '1.0 MB', '2.5 GB')
    """
    for unit, scale in (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if size < 999.95 * scale or unit == "GB":
            return f"{size / scale:,.0f} {unit}" if unit == "B" else f"{size / scale:,.1f} {unit}"
    raise AssertionError("the last unit takes every size")


def show_seconds(seconds: float) -> str:
    """Seconds as a reader says them.

    >>> show_seconds(0.0123), show_seconds(59.96), show_seconds(7325)
    ('12 ms', '1 min 00 s', '2 h 02 min')
    """
    if seconds == 0:
        return "0 s"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _cost(group: MethodRuns, key: str) -> str:
    value = group.cost.get(key)
    return NONE if value is None or value.mean is None else show_cost(key, value.mean)


def columns(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Heading and cells of every column; stream and model only where they differ, costs only where they are known."""
    groups = comparison.groups
    found = [("Method", [group.label for group in groups])]
    for heading, values in (("Stream", [g.stream for g in groups]), ("Model", [g.model for g in groups])):
        if len(set(values)) > 1:
            found.append((heading, values))
    found.append(("Runs", [str(len(group.runs)) for group in groups]))
    for name in HEADLINE_METRICS:
        found.append((DEFINITIONS[name].name, [percent(group.metrics[name]) for group in groups]))
    for retention_set in dict.fromkeys(name for group in groups for run in group.runs for name in run.retention):
        found.append((f"Retained on {retention_set}", [_retained(group, retention_set) for group in groups]))
    for key, heading in COSTS.items():
        if any(key in group.cost for group in groups):
            found.append((heading, [_cost(group, key) for group in groups]))
    return found


def _retained(group: MethodRuns, retention_set: str) -> str:
    """How much of the untouched model's score on a retention set is left, in points: its score at the end less the first."""
    scores = [run.retention[retention_set]["score"] for run in group.runs if retention_set in run.retention]
    changes = [values[-1] - values[0] for values in scores if values[0] is not None and values[-1] is not None]
    return NONE if not changes else f"{100 * sum(changes) / len(changes):+.1f}"


def _text_columns(headings: Sequence[str]) -> int:
    return headings.index("Runs")


def to_markdown(comparison: Comparison) -> str:
    """A Markdown table with a line that says what the numbers are."""
    found = columns(comparison)
    headings = [heading for heading, _ in found]
    names = _text_columns(headings)
    lines = [
        _markdown_row(headings),
        _markdown_row(["---"] * names + ["--:"] * (len(headings) - names), raw=True),
        *(_markdown_row(row) for row in zip(*(cells for _, cells in found), strict=True)),
        "",
        "Accuracies and forgetting in percent: mean ± sample standard deviation over runs.",
    ]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str], raw: bool = False) -> str:
    return "| " + " | ".join(cell if raw else _markdown(cell) for cell in cells) + " |"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|&#~])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def to_csv(comparison: Comparison) -> str:
    """One row for each group, every metric with mean, deviation, interval and number of values, unrounded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    parts = ("mean", "deviation", "low", "high", "n")
    metrics = list(comparison.groups[0].metrics)
    costs = list(dict.fromkeys(key for group in comparison.groups for key in group.cost))
    heading = [f"{name}_{part}" for name in metrics for part in parts]
    writer.writerow(["method", "stream", "model", "runs", *heading, *costs])
    for group in comparison.groups:
        values = [getattr(group.metrics[name], part) for name in metrics for part in parts]
        spent = [group.cost[key].mean if key in group.cost else None for key in costs]
        writer.writerow([group.label, group.stream, group.model, len(group.runs), *values, *spent])
    return buffer.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "±": r"$\pm$", NONE: "--", **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in _one_line(text))
    return re.sub(r"(^|\s)-(?=\d)", r"\1$-$", escaped)


def to_latex(comparison: Comparison) -> str:
    """A `tabular` for the `booktabs` package."""
    found = columns(comparison)
    headings = [heading for heading, _ in found]
    names = _text_columns(headings)
    rows = list(zip(*(cells for _, cells in found), strict=True))
    lines = [
        f"\\begin{{tabular}}{{{'l' * names}{'r' * (len(headings) - names)}}}",
        "\\toprule",
        *(" & ".join(_latex(cell) for cell in row) + r" \\" for row in [tuple(headings)]),
        "\\midrule",
        *(" & ".join(_latex(cell) for cell in row) + r" \\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


SHORT_HEADINGS = {  # so that the table fits in 80 columns
    "Last accuracy": "Last",
    "Average accuracy": "Average",
    "Average incremental accuracy": "Incre-\nmental",
    "Learning accuracy": "Learned",
    "Forgetting": "Forgot",
    "Trainable parameters": "Trained\nvalues",
    "Training time": "Time",
}
MISSED_FIRST = ("Average accuracy", "Learning accuracy", "Trainable parameters", "Stored")


def fitting(found: list[tuple[str, list[str]]], width: int) -> list[tuple[str, list[str]]]:
    """The columns without those that can best be missed, as many as it takes to fit `width` characters.

    >>> [heading for heading, _ in fitting([("Method", ["nmc"]), ("Average accuracy", ["12.3"])], 8)]
    ['Method']
    """
    found = list(found)
    for missed in MISSED_FIRST:
        if sum(column_width(heading, cells) for heading, cells in found) <= width:
            break
        found = [(heading, cells) for heading, cells in found if heading != missed]
    return found


def column_width(heading: str, cells: Sequence[str]) -> int:
    """Characters that a column takes in the terminal, its margin included."""
    lines = SHORT_HEADINGS.get(heading, heading).split("\n")
    return 2 + max(len(_one_line(text)) for text in (*lines, *cells))


def terminal_table(comparison: Comparison, width: int | None = None) -> "Table":
    """The comparison for `rich.print`, in `width` characters: the terminal's where none is given."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = fitting(columns(comparison), (width or get_terminal_size().columns) - 2)
    names = _text_columns([heading for heading, _ in found])
    caption = "accuracies and forgetting in percent: mean ± sample standard deviation over runs"
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for number, (heading, cells) in enumerate(found):
        short = SHORT_HEADINGS.get(heading, heading)
        widest = column_width(heading, cells) - 2
        if number < names:
            shown.add_column(short, overflow="fold", min_width=min(widest, 16))
        else:
            shown.add_column(short, justify="right", no_wrap=True, min_width=widest)
    for row in zip(*(cells for _, cells in found), strict=True):
        shown.add_row(*(Text(_one_line(cell)) for cell in row))
    return shown


def terminal_matrix(results: Mapping[str, Any]) -> "Group":
    """The accuracy matrix of a `results.json` as coloured cells in percent for `rich.print`.

    With more than 16 tasks, neighbouring tasks share a cell: its row is the last of them, its value their mean.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows, blocks = compress(results["accuracy_matrix"], MOST_CELLS)
    shown = Table(box=None, padding=0)
    shown.add_column("after ", justify="right", no_wrap=True)
    for block in blocks:
        shown.add_column(str(block[0] + 1), justify="right", width=4, no_wrap=True)
    for row, block in zip(rows, blocks, strict=False):
        if any(value is not None for value in row):
            shown.add_row(Text(f"task {block[-1] + 1} "), *(_cell(value) for value in row))
    size = len(blocks[0])
    shared = f" Every cell is the mean of up to {size} neighbouring tasks." if size > 1 else ""
    caption = f"Accuracy in percent. Rows: after learning a task. Columns: measured on a task.{shared}"
    return Group(shown, Text(caption, style="dim"))


def compress(matrix: Sequence[Sequence[float | None]], most: int) -> tuple[list[list[float | None]], list[range]]:
    """At most `most` rows and columns: blocks of neighbouring tasks, seen after the last task of each block.

    A cell is the mean over its block's tasks that were measured, None where none was.

    >>> compress([[0.8, None], [0.6, 1.0]], most=1)
    ([[0.8]], [range(0, 2)])
    """
    tasks = len(matrix[0])
    size = math.ceil(tasks / most)
    blocks = [range(start, min(start + size, tasks)) for start in range(0, tasks, size)]
    rows = []
    for block in blocks:
        if block[0] >= len(matrix):
            break
        row = matrix[min(block[-1], len(matrix) - 1)]
        known = [[value for j in part if (value := row[j]) is not None] for part in blocks]
        rows.append([sum(values) / len(values) if values else None for values in known])
    return rows, blocks


def _cell(value: float | None) -> "Text":
    from rich.text import Text

    if value is None:
        return Text("·", style="dim")
    colour = heat_colour(value)
    background = "#" + "".join(f"{channel:02x}" for channel in colour)
    return Text(f"{100 * value:.0f} ".rjust(4), style=f"{ink_on(colour)} on {background}")
