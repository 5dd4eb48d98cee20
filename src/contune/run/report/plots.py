"""Which plots a report shows, each with its name and its description in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

from contune.metric.cells import mean_matrix
from contune.metric.matrix import forgetting_by_task
from contune.metric.predictions import (
    ClassForgetting,
    TaskConfusion,
    confusion_between_tasks,
    forgetting_by_class,
)
from contune.run.report import figures as draw
from contune.run.report.compare import Comparison, MethodRuns
from contune.run.report.figures import Plot
from contune.run.report.record import Predictions, Run, read_losses, read_predictions
from contune.run.report.words import share

MOST_DETAILED = 6


@final
@dataclass(frozen=True)
class Detail:
    """One run looked at closely; `confusion` is None where tasks share their classes or the task is told."""

    key: str
    label: str
    run: Run
    classes: list[ClassForgetting]
    confusion: TaskConfusion | None
    losses: list[float]


def overview_plots(comparison: Comparison) -> list[Plot]:
    """The plots that put all methods side by side; none with a single task, where there are no curves."""
    groups = [group for group in comparison.groups if not group.is_joint]
    if not groups or max(group.runs[0].tasks for group in groups) < 2:
        return []
    joint, styles = comparison.joint, list(range(len(groups)))
    over = f"Average accuracy on the tasks seen so far, after each task. {_ends(groups, joint)}"
    plots = [Plot("accuracy-over-tasks", over, partial(draw.accuracy_over_tasks, groups, styles, joint))]
    if len(comparison.groups) > 1:
        by_task = f"Accuracy on each task at the end. {_ends(groups, joint)}"
        plots.append(Plot("final-by-task", by_task, partial(draw.final_by_task, groups, styles, joint)))
    known = [number for number in styles if groups[number].metrics["learning_accuracy"].mean is not None]
    if len(known) > 1:
        shown = [groups[number] for number in known]
        kept = f"Learning accuracy and average accuracy at the end, side by side. {_ends(shown, joint)}"
        plots.append(Plot("learned-and-kept", kept, partial(draw.learned_and_kept, shown, known, joint)))
    return plots


def _ends(groups: Sequence[MethodRuns], joint: MethodRuns | None) -> str:
    ends = [(group.label, group.metrics["average_accuracy"].mean) for group in groups]
    told = [f"{label} ends at {share(value)}." for label, value in ends if value is not None]
    bound = joint.metrics["average_accuracy"].mean if joint is not None else None
    return " ".join([*told, *([] if bound is None else [f"A dashed line marks joint training at {share(bound)}."])])


def matrix_plots(comparison: Comparison, bar: bool = False) -> list[Plot]:
    """One small accuracy matrix for each method, averaged over its runs."""
    return [
        Plot(
            f"matrix-{number + 1}",
            f"Accuracy matrix of {group.label}. {_ends([group], None)}",
            partial(draw.heat_map, draw.mean_matrix(group), title=group.label, width=3.2, bar=bar),
        )
        for number, group in enumerate(comparison.groups)
        if not group.is_joint
    ]


def read_details(comparison: Comparison) -> tuple[list[Detail], list[str]]:
    """The first run of each method, looked at closely, and sentences where stored predictions disagree with it."""
    chosen = [group for group in comparison.groups if not group.is_joint or len(comparison.groups) == 1]
    details, disagreements = [], []
    for number, group in enumerate(chosen[:MOST_DETAILED]):
        run = group.runs[0]
        stored = read_predictions(run)
        disagreements += _matrix_disagrees(run, stored)
        details.append(_detail(f"run-{number + 1}", group.label, run, stored))
    return details, disagreements


def _matrix_disagrees(run: Run, stored: Predictions) -> list[str]:
    derived = mean_matrix(stored.after_task, stored.task, stored.score, run.tasks)
    for i, row in enumerate(run.matrix):
        for j, value in enumerate(row):
            other = derived[i][j]
            if not (value == other or (value is not None and other is not None and abs(value - other) < 1e-6)):
                return [
                    f"{run.folder}: the accuracy on task {j + 1} after task {i + 1} is {value} in results.json and "
                    f"{other} from predictions.parquet; one of the two files was changed after the run."
                ]
    return []


def _detail(key: str, label: str, run: Run, stored: Predictions) -> Detail:
    learned = len(run.matrix)
    seen = (stored.after_task < learned) & (stored.task < learned)
    labels = [name for name, kept in zip(stored.label, seen.tolist(), strict=True) if kept]
    answers = [name for name, kept in zip(stored.prediction, seen.tolist(), strict=True) if kept]
    after, task, correct = stored.after_task[seen], stored.task[seen], stored.correct[seen]
    confusion = None
    if run.has_classes and run.arrives == "classes" and learned > 1:
        confusion = confusion_between_tasks(after, task, labels, answers, correct, learned)
    classes = [] if not run.has_classes else forgetting_by_class(after, task, labels, correct, learned)
    return Detail(key, label, run, classes, confusion, read_losses(run))


def detail_plots(detail: Detail, bar: bool = False) -> dict[str, Plot]:
    """The plots of one run by what they show: `matrix`, and `tasks`, `confusion`, `anytime`, `loss` where there is any."""
    run, key, label = detail.run, detail.key, detail.label
    learned = len(run.matrix)
    told = f"Accuracy matrix of {label}: rows after learning a task, columns measured on a task."
    plots = {"matrix": Plot(f"{key}-matrix", told, partial(draw.heat_map, run.matrix, bar=bar))}
    if learned > 1 and not run.is_joint:
        drawn = partial(draw.learned_and_final, [run.matrix[j][j] for j in range(learned)], run.matrix[-1][:learned])
        told = f"Accuracy of {label} on each task right after learning it and at the end.{_worst_task(run)}"
        plots["tasks"] = Plot(f"{key}-forgetting", told, drawn)
    if detail.confusion is not None:
        told = f"Share of each task's test examples that {label} answers with a class of each task, at the end."
        across, down = "answered with a class of task", "examples of task"
        drawn = partial(draw.heat_map, detail.confusion.shares, bar=bar, across=across, down=down)
        plots["confusion"] = Plot(f"{key}-confusion", told, drawn)
    if len(run.anytime) > 1:
        told = f"Accuracy of {label} over all tests seen so far, by the number of examples that had come."
        plots["anytime"] = Plot(f"{key}-anytime", told, partial(draw.accuracy_on_the_way, run.anytime))
    if len(detail.losses) > 1:
        told = f"Training loss of {label} over the logged steps."
        plots["loss"] = Plot(f"{key}-loss", told, partial(draw.training_loss, detail.losses))
    return plots


def _worst_task(run: Run) -> str:
    lost = [(value, task) for task, value in enumerate(forgetting_by_task(run.matrix)) if value is not None]
    if not lost or max(lost)[0] <= 0:
        return ""
    value, task = max(lost)
    return f" Task {task + 1} lost most: {share(value)}."
