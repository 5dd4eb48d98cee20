"""The report: one HTML file that needs nothing else, for one run or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml

from contune._files import write_text
from contune.metric.definitions import DEFINITIONS, Definition
from contune.metric.predictions import ClassForgetting
from contune.run.report.compare import Comparison, Difference, MethodRuns, compare, config_differences, describe_seeds
from contune.run.report.figures import Plot, write_plot
from contune.run.report.page import render_page, stylesheet
from contune.run.report.plots import Detail, detail_plots, matrix_plots, overview_plots, read_details
from contune.run.report.record import Run
from contune.run.report.tables import NONE, columns, percent, show_cost
from contune.run.report.words import describe_comparison, describe_group

MOST_CLASSES = 20
TILES = ("last_accuracy", "learning_accuracy", "forgetting", "average_incremental_accuracy")
PAIRED_METRICS = ("last_accuracy", "forgetting")
COST_NAMES = {
    "trainable_parameters": "Trainable parameters",
    "total_parameters": "Parameters in all",
    "stored_bytes": "Stored beside the base model",
    "train_seconds": "Training time",
    "eval_seconds": "Evaluation time",
    "fit_seconds": "Closed-form fitting time",
    "peak_memory_bytes": "Peak memory",
    "examples_forward": "Examples forward",
    "examples_backward": "Examples forward and backward",
    "cache_hits": "Examples read from the cache",
    "steps": "Gradient steps",
}


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the report of `runs` to the file `out`, or to `report.html` in the folder `out`; returns the file.

    Raise `RunDirectoryError` where a run directory is missing, unfinished or damaged.
    """
    out = Path(out)
    path = out / "report.html" if out.is_dir() else out
    page = render(compare(runs))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def write_figures(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write every plot of the report of `runs` into `folder`, each as SVG and as PNG; returns the files."""
    comparison = compare(runs)
    details, _ = read_details(comparison)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plots = overview_plots(comparison)
    plots += matrix_plots(comparison, bar=True) if len(comparison.groups) > 1 else []
    plots += [plot for detail in details for plot in detail_plots(detail, bar=True).values()]
    return [path for plot in plots for path in write_plot(plot, folder)]


# Rows of the page. A template reads `row.name` as an attribute first, which in a dict may be a method of its own.


@final
@dataclass(frozen=True)
class Tile:
    """A number in large type, and what it means."""

    name: str
    value: str
    meaning: str


@final
@dataclass(frozen=True)
class MetricRow:
    """A metric of every group."""

    definition: Definition
    cells: Sequence[str]


@final
@dataclass(frozen=True)
class PairedRow:
    """A paired difference in a metric; `clear`: its interval does not hold 0."""

    difference: Difference
    name: str
    clear: bool


@final
@dataclass(frozen=True)
class DetailView:
    """One run closely: of so many `classes` those that were forgotten most."""

    detail: Detail
    seeds: str
    plots: Mapping[str, Plot]
    forgotten: Sequence[ClassForgetting]
    classes: int
    measures: Sequence[Mapping[str, Any]]


def render(comparison: Comparison) -> str:
    """The report as HTML."""
    return render_page("contune.run.report", "report.html.j2", _page(comparison), stylesheet())


def _page(comparison: Comparison) -> dict[str, Any]:
    groups = comparison.groups
    several = len(groups) > 1
    details, disagreements = read_details(comparison)
    return {
        "title": _title(groups),
        "facts": _facts(groups[0].runs[0]) if len({group.stream for group in groups}) == 1 else [],
        "several": several,
        "groups": groups,
        "tiles": [] if several else _tiles(groups[0]),
        "sentences": describe_comparison(comparison) if several else describe_group(groups[0]),
        "warnings": [*comparison.warnings, *_notes(groups), *_changed_bases(groups), *disagreements],
        "columns": columns(comparison),
        "paired": _paired(comparison),
        "overview": {plot.name: plot for plot in overview_plots(comparison)},
        "matrices": matrix_plots(comparison) if len(details) > 1 else [],
        "details": [_detail_view(detail) for detail in details],
        "costs": _costs(groups),
        "metrics": _metrics(groups),
        "undefined": [DEFINITIONS[name].name for name in groups[0].metrics if _nowhere(name, groups)],
        "differences": config_differences(groups) if several else {},
        "configs": [(group.label, _as_yaml(group.runs[0])) for group in groups],
        "runs": [(group.label, describe_seeds(run), run) for group in groups for run in group.runs],
        "versions": {key: value for group in groups for key, value in _versions(group.runs[0]).items()},
    }


def _title(groups: Sequence[MethodRuns]) -> str:
    stream = groups[0].stream if len({group.stream for group in groups}) == 1 else "several streams"
    if len(groups) > 3:
        return f"{len(groups)} methods on {stream}"
    return f"{', '.join(group.label for group in groups)} on {stream}"


def _facts(run: Run) -> list[str]:
    stream = run.stream
    facts = [str(stream["kind"]), "1 task" if run.tasks == 1 else f"{run.tasks} tasks"]
    if stream.get("classes_per_task") and run.arrives != "domains":
        facts.append(f"{sum(stream['classes_per_task']):,} classes")
    if isinstance(stream.get("train_examples"), list):
        facts.append(f"{sum(stream['train_examples']):,} training examples")
    facts.append(f"{sum(run.test_examples):,} test examples")
    return [*facts, str(run.model["path"])] if run.model.get("path") else facts


def _notes(groups: Sequence[MethodRuns]) -> list[str]:
    """What the runs counted of their data: rows left out, texts cut, answers that cannot be given."""
    found = dict.fromkeys(str(note) for group in groups for run in group.runs for note in run.stream.get("notes", []))
    return [f"{note[:1].upper()}{note[1:]}." for note in found]


def _changed_bases(groups: Sequence[MethodRuns]) -> list[str]:
    return [
        f"The base model's weights changed during {run.folder}; its adapters fit no base that you can load."
        for group in groups
        for run in group.runs
        if run.model.get("base_unchanged") is False
    ]


def _tiles(group: MethodRuns) -> list["Tile"]:
    return [
        Tile(DEFINITIONS[name].name, percent(group.metrics[name]), DEFINITIONS[name].meaning)
        for name in TILES
        if group.metrics[name].mean is not None
    ]


def _detail_view(detail: Detail) -> "DetailView":
    known = [entry for entry in detail.classes if entry.forgetting is not None]
    known.sort(key=lambda entry: (-(entry.forgetting or 0.0), entry.task, entry.name))
    return DetailView(
        detail=detail,
        seeds=describe_seeds(detail.run),
        plots=detail_plots(detail),
        forgotten=[entry for entry in known if (entry.forgetting or 0.0) > 0][:MOST_CLASSES],
        classes=len(known),
        measures=shown_measures(detail.run),
    )


def shown_measures(run: Run) -> list[Mapping[str, Any]]:
    """Further measures that say something: a share that is to be small says nothing where it is always 0."""
    return [
        one
        for one in run.measures
        if not (one["share"] and not one["higher_is_better"]) or any(any(row) for row in one["matrix"])
    ]


def _costs(groups: Sequence[MethodRuns]) -> list[tuple[str, list[str]]]:
    keys = [key for key in COST_NAMES if any(key in group.cost for group in groups)]
    keys += [key for group in groups for key in group.cost]
    return [(COST_NAMES.get(key, _spell(key)), [_cost(group, key) for group in groups]) for key in dict.fromkeys(keys)]


def _spell(key: str) -> str:
    return key.replace(".", ": ").replace("_", " ").capitalize()


def _cost(group: MethodRuns, key: str) -> str:
    found = group.cost.get(key)
    if found is None or found.mean is None:
        return NONE
    total = group.cost.get("total_parameters")
    told = show_cost(key, found.mean)
    if key == "trainable_parameters" and total is not None and total.mean:
        told += f" ({100 * found.mean / total.mean:.2g}\N{NO-BREAK SPACE}%)"
    return told


def _metrics(groups: Sequence[MethodRuns]) -> list["MetricRow"]:
    return [
        MetricRow(DEFINITIONS[name], [percent(group.metrics[name]) for group in groups])
        for name in groups[0].metrics
        if not _nowhere(name, groups)
    ]


def _nowhere(name: str, groups: Sequence[MethodRuns]) -> bool:
    return all(group.metrics[name].mean is None for group in groups)


def _paired(comparison: Comparison) -> list["PairedRow"]:
    """Paired differences that have an interval, from two pairs of runs on."""
    return [
        PairedRow(difference, DEFINITIONS[difference.metric].name, clear=known.low > 0 or known.high < 0)
        for difference in comparison.differences
        if (known := difference.estimate).low is not None
        and known.high is not None
        and difference.metric in PAIRED_METRICS
    ]


def _versions(run: Run) -> dict[str, Any]:
    versions: dict[str, Any] = run.results.get("versions") or {}
    return versions


def _as_yaml(run: Run) -> str:
    return str(yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True))
