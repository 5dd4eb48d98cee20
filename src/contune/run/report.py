"""The report: one HTML file that needs nothing else, for one run or several."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, final

import yaml

from contune._files import write_text
from contune.metric.definitions import DEFINITIONS
from contune.metric.matrix import forgetting_by_task
from contune.metric.predictions import (
    ClassForgetting,
    TaskConfusion,
    confusion_between_tasks,
    forgetting_by_class,
    matrix_from_predictions,
)
from contune.run import report_figures as figures
from contune.run.compare import HEADLINE_METRICS, Comparison, Group, compare, config_differences, describe_seeds
from contune.run.record import Predictions, Run, read_losses, read_predictions
from contune.run.report_figures import Plot
from contune.run.report_words import describe_comparison, describe_group, share
from contune.run.tables import columns, percent, show_cost

MOST_DETAILED = 6
MOST_CLASSES = 20
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


@final
@dataclass(frozen=True)
class Detail:
    """One run looked at closely; `confusion` is None where tasks share their classes."""

    key: str
    label: str
    run: Run
    classes: list[ClassForgetting]
    confusion: TaskConfusion | None
    losses: list[float]


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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    details, _ = _details(comparison)
    plots = [*_overview_plots(comparison), *_matrix_plots(comparison, bar=True)]
    plots += [plot for detail in details for plot in _detail_plots(detail, bar=True).values()]
    return [path for plot in plots for path in figures.write_plot(plot, folder)]


def render(comparison: Comparison) -> str:
    """The report as HTML."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def load(name: str) -> str:
        return files("contune.run").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(autoescape=True, loader=FunctionLoader(load), undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters |= {"share": share, "points": lambda value: f"{100 * value:+.0f}".replace("-", "−")}
    environment.globals["svg"] = lambda plot: Markup(figures.inline_svg(plot))  # noqa: S704 (drawn by us, text escaped)
    page = environment.get_template("report.html.j2").render(_page(comparison), css=Markup(load("report.css")))
    # Control characters and lone surrogates may stand in names but not in HTML.
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", page)


def _page(comparison: Comparison) -> dict[str, Any]:
    groups = comparison.groups
    details, damaged = _details(comparison)
    several = len(groups) > 1
    first = groups[0].runs[0]
    return {
        "title": _title(comparison),
        "facts": _facts(first) if len({group.stream for group in groups}) == 1 else [],
        "several": several,
        "groups": groups,
        "tiles": [] if several else _tiles(groups[0]),
        "sentences": describe_comparison(comparison) if several else describe_group(groups[0]),
        "warnings": [*comparison.warnings, *damaged],
        "columns": columns(comparison),
        "overview": _overview_plots(comparison),
        "matrices": _matrix_plots(comparison) if several else [],
        "details": [_detail_view(detail) for detail in details],
        "left_out": sum(len(group.runs) for group in groups) - len(details),
        "costs": _costs(groups),
        "metrics": _metrics(groups),
        "undefined": [DEFINITIONS[name] for name in groups[0].metrics if _nowhere(name, groups)],
        "differences": config_differences(groups) if several else {},
        "paired": _paired(comparison),
        "configs": [(group.label, yaml.safe_dump(dict(group.runs[0].config), sort_keys=False, allow_unicode=True))
                    for group in groups],
        "runs": [(group.label, describe_seeds(run), run) for group in groups for run in group.runs],
        "definitions": DEFINITIONS,
    }  # fmt: skip


def _title(comparison: Comparison) -> str:
    groups = comparison.groups
    stream = groups[0].stream if len({group.stream for group in groups}) == 1 else "several streams"
    if len(groups) > 3:
        return f"{len(groups)} methods on {stream}"
    return f"{', '.join(group.label for group in groups)} on {stream}"


def _facts(run: Run) -> list[str]:
    stream = run.stream
    facts = [str(stream["kind"]), f"{run.tasks} tasks" if run.tasks > 1 else "1 task"]
    if stream.get("classes_per_task") and stream["kind"] != "domain-incremental":
        facts.append(f"{sum(stream['classes_per_task']):,} classes")
    if isinstance(stream.get("train_examples"), list):
        facts.append(f"{sum(stream['train_examples']):,} training examples")
    facts.append(f"{sum(run.test_examples):,} test examples")
    return [*facts, str(run.model["path"])] if run.model.get("path") else facts


def _tiles(group: Group) -> list[dict[str, str]]:
    names = ("last_accuracy", "learning_accuracy", "forgetting", "average_incremental_accuracy")
    return [
        {"name": DEFINITIONS[name].name, "value": percent(group.metrics[name]), "meaning": DEFINITIONS[name].meaning}
        for name in names
        if group.metrics[name].mean is not None
    ]


def _learners(comparison: Comparison) -> tuple[list[Group], list[int]]:
    """The groups with a curve over tasks, and the numbers of their colours; a lone joint run has none."""
    groups = [group for group in comparison.groups if not group.is_joint]
    return groups, list(range(len(groups)))


def _overview_plots(comparison: Comparison) -> list[Plot]:
    groups, styles = _learners(comparison)
    if not groups or max(group.runs[0].tasks for group in groups) < 2:
        return []
    joint = comparison.joint
    plots = [
        Plot("accuracy-over-tasks", _alt_over_tasks(groups, joint),
             partial(figures.accuracy_over_tasks, groups, styles, joint)),
    ]  # fmt: skip
    if len(comparison.groups) > 1:
        plots.append(
            Plot("final-by-task", "Accuracy on each task at the end, one line for each method. "
                 + _alt_ends(groups), partial(figures.final_by_task, groups, styles, joint))
        )  # fmt: skip
    known = [(g, s) for g, s in zip(groups, styles, strict=True) if g.metrics["learning_accuracy"].mean is not None]
    if len(known) > 1:
        plots.append(
            Plot("learned-against-final", "Learning accuracy against average accuracy at the end. " + _alt_ends(groups),
                 partial(figures.learned_against_final, [g for g, _ in known], [s for _, s in known], joint))
        )  # fmt: skip
    return plots


def _alt_over_tasks(groups: Sequence[Group], joint: Group | None) -> str:
    told = f"Average accuracy on the tasks seen so far, after each task. {_alt_ends(groups)}"
    bound = joint.metrics["average_accuracy"].mean if joint is not None else None
    return told if bound is None else f"{told} A dashed line marks joint training at {share(bound)}."


def _alt_ends(groups: Sequence[Group]) -> str:
    ends = [(group.label, group.metrics["average_accuracy"].mean) for group in groups]
    return " ".join(f"{label} ends at {share(value)}." for label, value in ends if value is not None)


def _matrix_plots(comparison: Comparison, bar: bool = False) -> list[Plot]:
    return [
        Plot(f"matrix-{number + 1}", f"Accuracy matrix of {group.label}. {_alt_ends([group])}",
             partial(figures.heat_map, figures.mean_matrix(group), title=group.label, width=3.6, bar=bar))
        for number, group in enumerate(comparison.groups)
        if not group.is_joint
    ]  # fmt: skip


def _details(comparison: Comparison) -> tuple[list[Detail], list[str]]:
    """The first run of each method, looked at closely, and sentences on stored predictions that disagree."""
    chosen = [group for group in comparison.groups if not group.is_joint or len(comparison.groups) == 1]
    details, damaged = [], []
    for number, group in enumerate(chosen[:MOST_DETAILED]):
        run = group.runs[0]
        stored = read_predictions(run)
        damaged += _matrix_disagrees(run, stored)
        details.append(_detail(f"run-{number + 1}", group.label, run, stored))
    return details, damaged


def _matrix_disagrees(run: Run, stored: Predictions) -> list[str]:
    derived = matrix_from_predictions(stored.after_task, stored.task, stored.correct, run.tasks)
    for i, row in enumerate(run.matrix):
        for j, value in enumerate(row):
            other = derived[i][j]
            if (value is None) != (other is None) or (
                value is not None and other is not None and abs(value - other) > 1e-6
            ):
                return [
                    f"{run.folder}: the accuracy on task {j + 1} after task {i + 1} is {value} in results.json and {other} "
                    "from predictions.parquet; one of the two files was changed after the run."
                ]
    return []


def _detail(key: str, label: str, run: Run, stored: Predictions) -> Detail:
    learned = len(run.matrix)
    seen = (stored.after_task < learned) & (stored.task < learned)
    labels = [name for name, kept in zip(stored.label, seen.tolist(), strict=True) if kept]
    answers = [name for name, kept in zip(stored.prediction, seen.tolist(), strict=True) if kept]
    after, task, correct = stored.after_task[seen], stored.task[seen], stored.correct[seen]
    confusion = None
    if run.stream["kind"] == "class-incremental" and learned > 1:
        confusion = confusion_between_tasks(after, task, labels, answers, correct, learned)
    classes = forgetting_by_class(after, task, labels, correct, learned)
    return Detail(key, label, run, classes, confusion, read_losses(run))


def _detail_plots(detail: Detail, bar: bool = False) -> dict[str, Plot]:
    run = detail.run
    learned = len(run.matrix)
    diagonal, final = [run.matrix[j][j] for j in range(learned)], run.matrix[-1][:learned]
    plots = {
        "matrix": Plot(f"{detail.key}-matrix", f"Accuracy matrix of {detail.label}: rows after learning a task, columns "
                       "measured on a task.", partial(figures.heat_map, run.matrix, bar=bar)),
    }  # fmt: skip
    if learned > 1 and not run.is_joint:
        worst = max(((f, j) for j, f in enumerate(forgetting_by_task(run.matrix)) if f is not None), default=None)
        told = f" Task {worst[1] + 1} lost most: {share(worst[0])}." if worst else ""
        plots["tasks"] = Plot(f"{detail.key}-forgetting", f"Accuracy on each task right after learning it and at the end.{told}",
                              partial(figures.learned_and_final, diagonal, final))  # fmt: skip
    if detail.confusion is not None:
        plots["confusion"] = Plot(f"{detail.key}-confusion", "Share of each task's test examples answered with a class of "
                                  "each task, at the end.",
                                  partial(figures.heat_map, detail.confusion.shares, across="answered with a class of task",
                                          down="examples of task", bar=bar))  # fmt: skip
    if len(detail.losses) > 1:
        plots["loss"] = Plot(f"{detail.key}-loss", "Training loss over the logged steps.",
                             partial(figures.training_loss, detail.losses))  # fmt: skip
    return plots


def _detail_view(detail: Detail) -> dict[str, Any]:
    known = [entry for entry in detail.classes if entry.forgetting is not None]
    known.sort(key=lambda entry: (-(entry.forgetting or 0.0), entry.task, entry.name))
    return {
        "key": detail.key,
        "label": detail.label,
        "run": detail.run,
        "seeds": describe_seeds(detail.run),
        "plots": _detail_plots(detail),
        "forgotten": [entry for entry in known if (entry.forgetting or 0.0) > 0][:MOST_CLASSES],
        "classes": len(known),
        "confusion": detail.confusion,
    }


def _costs(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    keys = dict.fromkeys([key for key in COST_NAMES if any(key in group.cost for group in groups)])
    keys |= dict.fromkeys(key for group in groups for key in group.cost)
    return [(COST_NAMES.get(key, _spell(key)), [_cost(group, key) for group in groups]) for key in keys]


def _spell(key: str) -> str:
    return key.replace(".", ": ").replace("_", " ").capitalize()


def _cost(group: Group, key: str) -> str:
    found = group.cost.get(key)
    if found is None or found.mean is None:
        return "–"
    told = show_cost(key, found.mean)
    total = group.cost.get("total_parameters")
    if key == "trainable_parameters" and total is not None and total.mean:
        told += f" ({100 * found.mean / total.mean:.2g}\N{NO-BREAK SPACE}%)"
    return told


def _metrics(groups: Sequence[Group]) -> list[dict[str, Any]]:
    return [
        {"definition": DEFINITIONS[name], "cells": [percent(group.metrics[name]) for group in groups]}
        for name in groups[0].metrics
        if not _nowhere(name, groups)
    ]


def _nowhere(name: str, groups: Sequence[Group]) -> bool:
    return all(group.metrics[name].mean is None for group in groups)


def _paired(comparison: Comparison) -> list[dict[str, Any]]:
    """Paired differences in the headline metrics that have an interval, two or more pairs."""
    found = []
    for difference in comparison.differences:
        known = difference.estimate
        if (
            known.low is None
            or known.high is None
            or difference.metric not in HEADLINE_METRICS[:1] + HEADLINE_METRICS[-1:]
        ):
            continue
        clear = known.low > 0 or known.high < 0
        found.append(
            {"difference": difference, "name": DEFINITIONS[difference.metric].name, "value": known, "clear": clear}
        )
    return found
