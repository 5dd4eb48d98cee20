"""Every number that a report, a comparison or a table shows, counted again from the stored predictions alone.

Nothing of contune's own metrics is used here: accuracies are counted row by row, and intervals are scipy's.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev

import pyarrow.parquet as pq
import pytest
from fake_runs import write_study
from rich.console import Console
from scipy.stats import t as student

from contune.metric.definitions import DEFINITIONS
from contune.run.report import compare as comparing
from contune.run.report import report, tables
from contune.run.report.compare import compare
from contune.run.report.report import write_report
from contune.run.report.tables import table, terminal_table

METHODS, SEEDS, TASKS = ("sequential-lora", "replay", "o-lora", "o-lora copy"), (0, 1, 2), 4
NAMES = {"last_accuracy": "Last accuracy", "forgetting": "Forgetting"}  # those that are compared pair by pair
HEADLINES = {
    "last_accuracy": "Last accuracy",
    "average_accuracy": "Average accuracy",
    "average_incremental_accuracy": "Average incremental accuracy",
    "learning_accuracy": "Learning accuracy",
    "forgetting": "Forgetting",
}


def right_answers(run: Path) -> dict[tuple[int, int], list[bool]]:
    """Which answers are right, for every task asked after every task."""
    columns = pq.read_table(run / "predictions.parquet").to_pydict()
    right: dict[tuple[int, int], list[bool]] = {}
    for after, task, label, answer in zip(
        *(columns[n] for n in ("after_task", "task", "label", "prediction")), strict=True
    ):
        right.setdefault((after, task), []).append(label == answer)
    return right


def counted(run: Path) -> dict[str, float]:
    """Every metric that needs no other run, from the answers alone."""
    right, end = right_answers(run), TASKS - 1
    r = {place: fmean(answers) for place, answers in right.items()}
    old = range(end)
    after = [fmean(r[row, task] for task in range(row + 1)) for row in range(TASKS)]
    moved = fmean(r[row, task] - r[task, task] for row in range(1, TASKS) for task in range(row))
    lost = [max(r[row, task] for row in range(task, end)) - r[end, task] for task in old]
    final = {task: r[end, task] - r[task, task] for task in old}
    stability, plasticity = fmean(r[end, task] for task in old), r[end, end]
    return {
        "last_accuracy": fmean(one for task in range(TASKS) for one in right[end, task]),
        "average_accuracy": after[-1],
        "average_incremental_accuracy": fmean(after),
        "learning_accuracy": fmean(r[task, task] for task in range(TASKS)),
        "forgetting": fmean(lost),
        "learned_minus_final": -fmean(final.values()),
        "relative_forgetting": fmean(-final[task] / r[task, task] for task in old),
        "backward_transfer": fmean(final.values()),
        "backward_transfer_trace": sum(final.values()) / TASKS,
        "backward_transfer_matrix": moved,
        "positive_backward_transfer": max(0.0, moved),
        "remembering": 1 - abs(min(0.0, moved)),
        "stability": stability,
        "plasticity": plasticity,
        "stability_plasticity_trade_off": 2 * stability * plasticity / (stability + plasticity),
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values) - half, fmean(values) + half


def signed(value: float) -> str:
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def cells(html: str, summary: str) -> list[list[str]]:
    """The rows of the table behind a summary or heading."""
    body = html[html.index(summary) :]
    body = body[body.index("<tbody>") : body.index("</tbody>")]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)] for row in rows]


def check(study: Sequence[Path], folder: Path) -> None:
    """Compare what is shown of the study with what its predictions say."""
    numbers = {run.name: counted(run) for run in study}
    values = {
        method: {name: [numbers[f"{method}-{seed}"][name] for seed in SEEDS] for name in numbers[f"{method}-0"]}
        for method in METHODS
    }
    html = write_report(list(study), folder / "report.html").read_text(encoding="utf-8")
    assert cells(html, "Paired differences over shared seeds and orders") == paired_rows(values)
    check_side_by_side(cells(html, "Side by side"), html, values)
    check_definitions(cells(html, "Every metric, with its definition"), values)
    check_costs(cells(html, "What it cost"), study)
    check_csv(table(compare(study), "csv"), values)
    check_lines(table(compare(study), "md"), "|", values)
    check_lines(table(compare(study), "latex").replace(r"$\pm$", "±"), "&", values)
    check_lines(in_terminal(compare(study)), "  ", values)


def paired_rows(values: Mapping[str, Mapping[str, list[float]]]) -> list[list[str]]:
    """First − second, metric, points, interval, pairs, clear of 0."""
    rows = []
    for first, second in combinations(METHODS, 2):
        for name, title in sorted(NAMES.items(), reverse=True):
            gaps = [a - b for a, b in zip(values[first][name], values[second][name], strict=True)]
            low, high = interval(gaps)
            clear = "no" if low <= 0 <= high else "yes"
            between = f"{signed(low)} to {signed(high)}"
            rows.append([f"{first} − {second}", title, signed(fmean(gaps)), between, str(len(gaps)), clear])
    return rows


def spread(found: Sequence[float]) -> str:
    return f"{100 * fmean(found):.1f} ± {100 * stdev(found):.1f}"


def check_side_by_side(rows: list[list[str]], html: str, values: Mapping[str, Mapping[str, list[float]]]) -> None:
    part = html[html.index("Side by side") :]
    headings = re.findall(r"<th scope=\"col\".*?>(.*?)</th>", part[: part.index("</thead>")])
    assert [row[0] for row in rows] == list(METHODS)
    for row, method in zip(rows, METHODS, strict=True):
        shown = dict(zip(headings, row, strict=True))
        assert shown["Runs"] == str(len(SEEDS))
        assert {title: shown[title] for title in HEADLINES.values()} == {
            title: spread(values[method][name]) for name, title in HEADLINES.items()
        }


def check_definitions(rows: list[list[str]], values: Mapping[str, Mapping[str, list[float]]]) -> None:
    """One row a metric, one cell a method behind its name."""
    shown = {re.split("[↑↓]", row[0])[0].strip(): row[1:] for row in rows}
    for name in values[METHODS[0]]:
        assert shown[DEFINITIONS[name].name] == [spread(values[method][name]) for method in METHODS]


def check_costs(rows: list[list[str]], study: Sequence[Path]) -> None:
    """Means over the runs of a method of what `results.json` holds."""
    costs = {run.name: json.loads((run / "results.json").read_text())["cost"] for run in study}
    shown = {row[0]: row[1:] for row in rows}

    def means(key: str) -> list[float]:
        return [fmean(costs[f"{method}-{seed}"][key] for seed in SEEDS) for method in METHODS]

    assert shown["Gradient steps"] == [f"{steps:,.0f}" for steps in means("steps")]
    assert [row.split("\N{NO-BREAK SPACE}(")[0].split(" (")[0] for row in shown["Trainable parameters"]] == [
        f"{values:,.0f}" for values in means("trainable_parameters")
    ]
    assert shown["Training time"] == [
        f"{int(time) // 60} min {int(time) % 60:02d} s" for time in means("train_seconds")
    ]


def check_csv(text: str, values: Mapping[str, Mapping[str, list[float]]]) -> None:
    for row in csv.DictReader(io.StringIO(text)):
        for name, found in values[row["method"]].items():
            wanted = [fmean(found), stdev(found), *interval(found), len(found)]
            shown = [float(row[f"{name}_{part}"]) for part in ("mean", "deviation", "low", "high", "n")]
            assert shown == pytest.approx(wanted, abs=1e-9)


def in_terminal(comparison: comparing.Comparison) -> str:
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(terminal_table(comparison, 200))
    return console.file.getvalue()  # type: ignore[attr-defined]


def check_lines(text: str, edge: str, values: Mapping[str, Mapping[str, list[float]]]) -> None:
    """A text table with a line for each method, its figures in the order of the headings."""
    for method in METHODS:
        found = [line for line in text.splitlines() if line.strip(" |").split(edge)[0].strip() == method]
        assert len(found) == 1
        figures = [spread(values[method][name]) for name in HEADLINES]
        assert re.findall(r"\d+\.\d ± \d+\.\d", found[0]) == figures


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_study(tmp_path_factory.mktemp("study"), METHODS, seeds=SEEDS, tasks=TASKS, classes=2, examples=5)


def test_what_is_shown_is_what_the_predictions_say(study: list[Path], tmp_path: Path) -> None:
    check(study, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    answers = [row[-1] for row in cells(html, "Paired differences over shared seeds and orders")]
    assert {"yes", "no"} == set(answers)


def always_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = report._paired
    monkeypatch.setattr(report, "_paired", lambda found: [replace(row, clear=True) for row in rows(found)])


def other_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    made = comparing._differences
    turned = lambda groups: [replace(one, first=one.second, second=one.first) for one in made(groups)]  # noqa: E731
    monkeypatch.setattr(comparing, "_differences", turned)


def narrow_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contune.metric.estimate.student_quantile", lambda *_: 1.96)


def population_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    made = comparing.estimate

    def shrunk(values: Sequence[float | None]) -> object:
        found = made(values)
        return found if found.deviation is None else replace(found, deviation=found.deviation * (2 / 3) ** 0.5)

    monkeypatch.setattr(comparing, "estimate", shrunk)


def costs_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    made = report._costs
    monkeypatch.setattr(report, "_costs", lambda groups: [(name, cells[::-1]) for name, cells in made(groups)])


def metric_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFINITIONS, "stability", DEFINITIONS["plasticity"])


def columns_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tables.columns

    def turned(found: comparing.Comparison) -> list[tuple[str, list[str]]]:
        shown = dict(made(found))
        shown["Average accuracy"], shown["Learning accuracy"] = shown["Learning accuracy"], shown["Average accuracy"]
        return list(shown.items())

    monkeypatch.setattr(tables, "columns", turned)


def rows_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    made = report.columns
    turned = lambda found: [(name, cells if name == "Method" else cells[::-1]) for name, cells in made(found)]  # noqa: E731
    monkeypatch.setattr(report, "columns", turned)


FAULTS = (
    always_clear,
    other_way_round,
    narrow_interval,
    population_deviation,
    rows_swapped,
    columns_swapped,
    costs_swapped,
    metric_under_another_name,
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_wrong_value_is_found(
    fault: object, study: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)  # type: ignore[operator]
    with pytest.raises(AssertionError):
        check(study, tmp_path)


def test_what_is_shown_of_one_run_is_what_its_predictions_say(study: list[Path], tmp_path: Path) -> None:
    run = study[0]
    html = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    numbers, right = counted(run), right_answers(run)
    plain = re.sub(r"<[^>]+>", "", html).replace("\N{NO-BREAK SPACE}", " ")
    share = {name: round(100 * numbers[name]) for name in ("last_accuracy", "learning_accuracy", "forgetting")}
    assert f"It ends at {share['last_accuracy']} % over all 8 classes." in plain
    assert f"Right after learning each task it knew {share['learning_accuracy']} %" in plain
    assert f"of the earlier tasks it forgot {share['forgetting']} points" in plain
    behind = cells(html, "The numbers behind the matrix")
    assert [[float(cell) for cell in row[1:] if cell] for row in behind] == [
        [round(100 * fmean(right[after, task]), 1) for task in range(after + 1)] for after in range(TASKS)
    ]
    assert classes_of(html) == lost_by_class(run)


def classes_of(html: str) -> dict[str, list[str]]:
    """Task and points lost of each class that was forgotten, and what its bar shows: still known, and lost."""
    heading = "Classes by what they lost" if "Classes by what they lost" in html else "classes that lost most"
    body = html[html.index(heading) :]
    bars = re.findall(r"<u style=\"width:([\d.]+)%\"></u><i style=\"left:[\d.]+%;width:([\d.]+)%\">", body)
    rows = cells(html, heading)
    return {row[0]: [row[1], row[2], *bar] for row, bar in zip(rows, bars[: len(rows)], strict=True)}


def lost_by_class(run: Path) -> dict[str, list[str]]:
    columns = pq.read_table(run / "predictions.parquet").to_pydict()
    right: dict[tuple[str, int], list[bool]] = {}
    tasks: dict[str, int] = {}
    for after, task, label, answer in zip(
        *(columns[n] for n in ("after_task", "task", "label", "prediction")), strict=True
    ):
        right.setdefault((label, after), []).append(label == answer)
        tasks[label] = task
    found = {}
    for label, task in tasks.items():
        end = fmean(right[label, TASKS - 1])
        best = max(fmean(right[label, row]) for row in range(task, TASKS))
        if task < TASKS - 1 and best > end:
            lost = 100 * (best - end)
            found[label] = [str(task + 1), f"{lost:.0f}", f"{100 * end:.1f}", f"{lost:.1f}"]
    return found
