"""Grouping, spread, paired differences, warnings, and the tables made of them."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_run, write_study
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from contune.errors import ConfigError, RunDirectoryError
from contune.run.report.colours import heat_colour, ink_on
from contune.run.report.compare import compare, config_differences
from contune.run.report.record import read_losses, read_predictions, read_run
from contune.run.report.tables import compress, table, terminal_matrix, terminal_table


def edit(folder: Path, change: dict[str, Any]) -> None:
    """Change `results.json`: dotted keys, None as a value removes the key."""
    path = folder / "results.json"
    results = json.loads(path.read_text())
    for key, value in change.items():
        *parents, last = key.split(".")
        place = results
        for parent in parents:
            place = place[parent]
        place[last] = value
        if value is None:
            del place[last]
    path.write_text(json.dumps(results))


def shown(renderable: Any, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("study")
    return write_study(root, ["sequential-lora", "replay", "joint"], seeds=(0, 1, 2), tasks=4)


def test_runs_that_differ_in_seeds_are_one_group(study: list[Path]) -> None:
    comparison = compare(study)
    assert [group.label for group in comparison.groups] == ["sequential-lora", "replay", "joint"]
    assert [len(group.runs) for group in comparison.groups] == [3, 3, 3]
    assert comparison.warnings == ()
    assert comparison.joint is comparison.groups[2]


def test_where_a_run_was_started_changes_no_group(tmp_path: Path) -> None:
    runs = write_study(tmp_path, ["replay"], seeds=(0, 1), tasks=3)
    for number, folder in enumerate(runs):
        with (folder / "config.yaml").open("a") as file:
            file.write(f"\nbase: /somewhere/{number}\ncache: {{folder: /cache/{number}}}\n")
    assert [len(group.runs) for group in compare(runs).groups] == [2]


def test_mean_and_spread_by_hand(study: list[Path]) -> None:
    values = [json.loads((folder / "results.json").read_text())["metrics"]["forgetting"] for folder in study[:3]]
    found = compare(study).groups[0].metrics["forgetting"]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    assert found.mean == pytest.approx(mean)
    assert found.deviation == pytest.approx(deviation)
    assert found.high == pytest.approx(mean + 4.302653 * deviation / math.sqrt(3), rel=1e-6)


def test_differences_are_paired_over_seed_and_order(study: list[Path]) -> None:
    differences = compare([*study[:3], *reversed(study[3:6])]).differences
    found = next(entry for entry in differences if entry.metric == "last_accuracy")
    gaps = [
        read_run(a).metrics()["last_accuracy"] - read_run(b).metrics()["last_accuracy"]  # type: ignore[operator]
        for a, b in zip(study[:3], study[3:6], strict=True)
    ]
    assert (found.first, found.second, found.estimate.n) == ("sequential-lora", "replay", 3)
    assert sorted(found.estimate.values) == pytest.approx(sorted(gaps))


def test_gap_to_joint_uses_the_same_order(study: list[Path]) -> None:
    group = compare(study).groups[0]
    expected = [
        sum(j - r for j, r in zip(read_run(joint).matrix[-1], read_run(run).matrix[-1], strict=True)) / 4  # type: ignore[operator]
        for run, joint in zip(study[:3], study[6:], strict=True)
    ]
    assert group.metrics["upper_bound_gap"].values == pytest.approx(expected)
    assert compare(study[:6]).groups[0].metrics["upper_bound_gap"].mean is None


def test_settings_tell_groups_of_one_method_apart(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{rank}-{seed}", "o-lora", tasks=2, settings={"rank": rank}, seed=seed)
        for rank in (8, 16)
        for seed in (0, 1)
    ]
    comparison = compare(runs)
    assert [group.label for group in comparison.groups] == ["o-lora (rank 8)", "o-lora (rank 16)"]
    assert [len(group.runs) for group in comparison.groups] == [2, 2]
    assert config_differences(comparison.groups) == {"method.rank": [8, 16]}


def test_a_run_given_twice_is_counted_once(study: list[Path], tmp_path: Path) -> None:
    comparison = compare([study[0], study[0]])
    assert len(comparison.groups[0].runs) == 1
    assert "is the same folder as" in comparison.warnings[0]
    again = write_run(tmp_path / "again", "sequential-lora", tasks=4)
    comparison = compare([study[0], again])
    assert len(comparison.groups[0].runs) == 1
    assert "is the same experiment as" in comparison.warnings[0]


def test_different_streams_and_models_are_told(study: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", "replay", tasks=3)
    comparison = compare([study[0], other])
    assert any("different streams" in text and "3 tasks" in text for text in comparison.warnings)
    assert comparison.differences == ()
    model = write_run(tmp_path / "model", "replay", tasks=4)
    edit(model, {"model.sha256": "00", "model.path": "bert-base"})
    comparison = compare([study[0], model])
    assert any("different base models" in text and "bert-base" in text for text in comparison.warnings)
    assert comparison.differences == ()


def test_different_data_under_one_name_is_told(study: list[Path], tmp_path: Path) -> None:
    changed = write_run(tmp_path / "changed", "replay", tasks=4)
    edit(changed, {"stream.hash": "other"})
    comparison = compare([study[0], changed])
    assert any("saw different data in order 0" in text for text in comparison.warnings)
    assert comparison.differences == ()


def test_runs_without_a_shared_seed_are_not_paired(study: list[Path]) -> None:
    comparison = compare([study[0], study[4]])
    assert any("share no seed and order" in text for text in comparison.warnings)
    assert comparison.differences == ()


def test_a_metric_that_disagrees_with_the_matrix_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=2)
    edit(run, {"metrics.forgetting": 0.123})
    comparison = compare([run])
    assert "says forgetting is 0.123000 but its accuracy matrix gives" in comparison.warnings[0]
    assert comparison.groups[0].metrics["forgetting"].mean != 0.123


def test_an_unfinished_matrix_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=3)
    matrix = json.loads((run / "results.json").read_text())["accuracy_matrix"]
    edit(run, {"accuracy_matrix": [*matrix[:2], [None] * 3], "metrics": {}})
    comparison = compare([run])
    assert "has learned 2 of 3 tasks" in comparison.warnings[0]
    assert comparison.groups[0].metrics["average_accuracy"].mean == pytest.approx(sum(matrix[1][:2]) / 2)


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"format": 7}, "has format 7"),
    "method": ({"method": None}, "method in .* is None"),
    "stream": ({"stream": []}, r"stream in .* is \[\]"),
    "tasks": ({"stream.tasks": "ten"}, "stream.tasks in .* is 'ten'"),
    "sizes": ({"stream.test_examples": [1]}, "stream.test_examples in .* has 1 entries"),
    "counts": ({"stream.test_examples": [1, -1]}, "holds -1; it must hold counts"),
    "no matrix": ({"accuracy_matrix": None}, "is not a list of rows"),
    "percent": ({"accuracy_matrix": [[98.0, None], [91.0, 97.0]]}, r"accuracy_matrix\[0\]\[0\] in .* is 98.0"),
    "ragged": ({"accuracy_matrix": [[0.5, None], [0.5]]}, "row 1 of the accuracy matrix has 1 cells"),
    "columns": ({"accuracy_matrix": [[0.5]]}, "has 1 columns and stream.tasks is 2"),
    "empty": ({"accuracy_matrix": [[None, None]]}, "holds no accuracy at all"),
    "seed": ({"seeds.train": "zero"}, "seeds.train in .* is 'zero'"),
    "cost": ({"cost": [1]}, r"cost in .* is \[1\]"),
}


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_damaged_results_are_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=2)
    change, sentence = DAMAGE[name]
    edit(run, change)
    with pytest.raises(RunDirectoryError, match=sentence) as caught:
        compare([run])
    assert "results.json" in str(caught.value)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="nowhere is not a folder"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(RunDirectoryError, match="no run directory was given"):
        compare([])
    with pytest.raises(RunDirectoryError, match=r"has no results\.json; .*`contune resume"):
        compare([tmp_path])
    run = write_run(tmp_path / "run", tasks=2)
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(RunDirectoryError, match=r"config\.yaml cannot be read as YAML"):
        compare([run])
    (run / "config.yaml").unlink()
    with pytest.raises(RunDirectoryError, match=r"config\.yaml is missing"):
        compare([run])
    for text in ('{"format": 1', '{"format": NaN}', "[]"):
        (run / "results.json").write_text(text)
        with pytest.raises(RunDirectoryError, match=r"results\.json"):
            compare([run])


def test_damaged_predictions_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    run = read_run(write_run(tmp_path / "run", tasks=2))
    path = run.folder / "predictions.parquet"
    stored = parquet.read_table(path)
    parquet.write_table(stored.drop_columns(["label"]), path)
    with pytest.raises(RunDirectoryError, match=r"lacks the columns \['label'\]"):
        read_predictions(run)
    parquet.write_table(stored.set_column(0, "after_task", pa.array([9] * len(stored))), path)
    with pytest.raises(RunDirectoryError, match=r"column after_task of .* must be 0 to 1"):
        read_predictions(run)
    parquet.write_table(stored.set_column(0, "after_task", pa.array([None] * len(stored), pa.int64())), path)
    with pytest.raises(RunDirectoryError, match=r"empty cells in the columns \['after_task'\]"):
        read_predictions(run)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunDirectoryError, match="cannot be read as Parquet"):
        read_predictions(run)
    path.unlink()
    with pytest.raises(RunDirectoryError, match=r"predictions\.parquet is missing"):
        read_predictions(run)


def test_a_cut_off_event_log_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", tasks=2))
    events = run.folder / "events.jsonl"
    whole = read_losses(run)
    assert len(whole) == 40
    events.write_text(events.read_text() + '{"event": "loss", "lo')
    assert read_losses(run) == whole


def test_markdown_has_one_row_a_group_and_escapes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "a|b*c", tasks=2)
    lines = table(compare([run]), "md").splitlines()
    assert lines[2].startswith(r"| a\|b\*c | 1 |")
    assert len({line.replace(r"\|", "").count("|") for line in lines[:3]}) == 1


def test_latex_escapes_and_uses_booktabs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "100%_of {a} & b\\c #1 $x$ ~^<>", tasks=2)
    text = table(compare([run]), "latex")
    name = (
        r"100\%\_of \{a\} \& b\textbackslash{}c \#1 \$x\$ \textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
    )
    assert f"\n{name} & 1 & " in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    row = text.splitlines()[4]
    assert row.count(" & ") == len(text.splitlines()[0].split("{")[-1].rstrip("}")) - 1


def test_csv_keeps_full_precision_and_leaves_the_undefined_empty(study: list[Path]) -> None:
    rows = list(csv.DictReader(io.StringIO(table(compare(study), "csv"))))
    group = compare(study).groups[0]
    assert float(rows[0]["last_accuracy_mean"]) == group.metrics["last_accuracy"].mean
    assert float(rows[0]["last_accuracy_high"]) == group.metrics["last_accuracy"].high
    assert rows[2]["forgetting_mean"] == ""
    assert rows[0]["trainable_parameters"] == "147456.0"


def test_percentages_and_spread_in_the_table(study: list[Path]) -> None:
    group = compare(study).groups[0]
    value = group.metrics["last_accuracy"]
    assert value.mean is not None
    assert value.deviation is not None
    assert f"{100 * value.mean:.1f} ± {100 * value.deviation:.1f}" in table(compare(study), "md")


def test_an_unknown_format_is_refused(study: list[Path]) -> None:
    with pytest.raises(ConfigError, match="table format is 'latx'; did you mean 'latex'"):
        table(compare(study), "latx")


def test_the_terminal_table_fits_and_shows_markup_as_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "[red]x[/red]", tasks=2)
    text = shown(terminal_table(compare([run])), width=120)
    assert "[red]x[/red]" in text


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_terminal_table_cuts_no_number(study: list[Path], width: int) -> None:
    comparison = compare(study)
    plain = Console(width=width, file=io.StringIO(), color_system=None)
    plain.print(terminal_table(comparison, width))
    text = plain.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    last = comparison.groups[0].metrics["last_accuracy"].mean
    assert last is not None
    assert f"{100 * last:.1f} ±" in text


@pytest.mark.parametrize(("tasks", "rows"), [(1, 1), (2, 2), (16, 16), (17, 9), (50, 13)])
def test_the_terminal_matrix_fits_eighty_columns(tasks: int, rows: int, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=tasks, classes=1, examples=2)
    results = json.loads((run / "results.json").read_text())
    lines = [
        line for line in shown(terminal_matrix(results), width=80).splitlines() if "task " in line and "\x1b[38" in line
    ]
    assert len(lines) == rows
    plain = Console(width=80, file=io.StringIO(), color_system=None)
    plain.print(terminal_matrix(results))
    assert max(map(len, plain.file.getvalue().splitlines())) <= 80  # type: ignore[attr-defined]


@given(st.integers(1, 60), st.integers(1, 16))
def test_compressed_matrices_keep_the_final_row_and_the_triangle(tasks: int, most: int) -> None:
    matrix = [[(i + j) / (2 * tasks) if j <= i else None for j in range(tasks)] for i in range(tasks)]
    rows, blocks = compress(matrix, most)
    assert len(rows) == len(blocks) <= most
    assert [task for block in blocks for task in block] == list(range(tasks))
    for i, row in enumerate(rows):
        assert [value is not None for value in row] == [j <= i for j in range(len(blocks))]
    last = sum(value * len(block) for value, block in zip(rows[-1], blocks, strict=True) if value is not None)
    assert last == pytest.approx(sum(value for value in matrix[-1] if value is not None))


def test_cell_numbers_contrast_with_their_colour() -> None:
    def luminance(colour: tuple[int, ...]) -> float:
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for step in range(101):
        colour = heat_colour(step / 100)
        ink = ink_on(colour)
        lights = sorted([luminance(colour), luminance(tuple(bytes.fromhex(ink[1:])))])
        assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.2
