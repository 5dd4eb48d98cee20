"""Every number that a report, a comparison or a table shows, counted again from the stored predictions alone.

Nothing of contune's own metrics is used here: accuracies are counted row by row, and intervals are scipy's.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev

import pyarrow.parquet as pq
import pytest
from fake_runs import write_study
from scipy.stats import t as student

from contune.run.report import compare as comparing
from contune.run.report import report
from contune.run.report.compare import compare
from contune.run.report.report import write_report
from contune.run.report.tables import table

METHODS, SEEDS, TASKS = ("sequential-lora", "replay", "o-lora", "o-lora copy"), (0, 1, 2), 4
NAMES = {"last_accuracy": "Last accuracy", "forgetting": "Forgetting"}


def counted(run: Path) -> dict[str, float]:
    """Last accuracy over all examples, and the mean over earlier tasks of the best accuracy less the last one."""
    columns = pq.read_table(run / "predictions.parquet").to_pydict()
    right: dict[tuple[int, int], list[bool]] = {}
    for after, task, label, answer in zip(
        *(columns[n] for n in ("after_task", "task", "label", "prediction")), strict=True
    ):
        right.setdefault((after, task), []).append(label == answer)
    end = TASKS - 1
    last = [one for task in range(TASKS) for one in right[end, task]]
    lost = [
        max(fmean(right[after, task]) for after in range(task, end)) - fmean(right[end, task]) for task in range(end)
    ]
    return {"last_accuracy": fmean(last), "forgetting": fmean(lost)}


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
        method: {name: [numbers[f"{method}-{seed}"][name] for seed in SEEDS] for name in NAMES} for method in METHODS
    }
    html = write_report(list(study), folder / "report.html").read_text(encoding="utf-8")
    assert cells(html, "Paired differences over shared seeds and orders") == paired_rows(values)
    check_side_by_side(cells(html, "Side by side"), html, values)
    check_csv(table(compare(study), "csv"), values)
    check_markdown(table(compare(study), "md"), values)


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
        assert {title: shown[title] for title in NAMES.values()} == {
            title: spread(values[method][name]) for name, title in NAMES.items()
        }


def check_csv(text: str, values: Mapping[str, Mapping[str, list[float]]]) -> None:
    for row in csv.DictReader(io.StringIO(text)):
        for name in NAMES:
            found = values[row["method"]][name]
            wanted = [fmean(found), stdev(found), *interval(found), len(found)]
            shown = [float(row[f"{name}_{part}"]) for part in ("mean", "deviation", "low", "high", "n")]
            assert shown == pytest.approx(wanted, abs=1e-9)


def check_markdown(text: str, values: Mapping[str, Mapping[str, list[float]]]) -> None:
    for method in METHODS:
        line = next(line for line in text.splitlines() if line.split("|")[1].strip() == method)
        assert all(spread(values[method][name]) in line for name in NAMES)


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


def rows_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    made = report.columns
    turned = lambda found: [(name, cells if name == "Method" else cells[::-1]) for name, cells in made(found)]  # noqa: E731
    monkeypatch.setattr(report, "columns", turned)


@pytest.mark.parametrize("fault", [always_clear, other_way_round, narrow_interval, population_deviation, rows_swapped])
def test_a_planted_wrong_value_is_found(
    fault: object, study: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)  # type: ignore[operator]
    with pytest.raises(AssertionError):
        check(study, tmp_path)
