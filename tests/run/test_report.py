"""The report: what it says, that it holds every name harmlessly, that it needs nothing else, and its plots."""

import json
import re
import shutil
import struct
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake_runs import write_run, write_study

from contune.errors import RunDirectoryError
from contune.run.report.compare import compare
from contune.run.report.report import write_figures, write_report
from contune.run.report.words import describe_comparison, describe_group

NASTY = [
    "<script>alert(1)</script>",
    "\"quoted\" & 'single' </title></style>",
    "x" * 400,
    "مرحبا بالعالم",
    "🦊 emoji 👩‍🔬",
    r"$\frac{a}$ _b_ |c|",
    "line\nbreak\ttab",
    "\x07bell \ud800 surrogate".replace("\ud800", ""),
]


class Page(HTMLParser):
    """What a browser would act on: tags, attributes and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._skipped = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._skipped += tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.text += data.replace("\N{NO-BREAK SPACE}", " ")

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(runs: list[Path], folder: Path) -> Page:
    return Page(write_report(runs, folder / "out.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("one") / "run", tasks=4)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_study(tmp_path_factory.mktemp("study"), ["sequential-lora", "replay", "joint"], seeds=(0, 1), tasks=4)


def test_one_run_says_what_happened(one: Path, tmp_path: Path) -> None:
    metrics = json.loads((one / "results.json").read_text())["metrics"]
    text = page_of([one], tmp_path).text
    assert f"It ends at {100 * metrics['last_accuracy']:.0f} % over all 16 classes." in text
    assert f"Right after learning each task it knew {100 * metrics['learning_accuracy']:.0f} %" in text
    assert f"of the earlier tasks it forgot {100 * metrics['forgetting']:.0f} points" in text
    assert "errors at the end name a class of another task" in text
    assert "147,456" in text
    assert "epochs: 5" in text


def test_several_runs_say_who_forgets_and_who_keeps(study: list[Path]) -> None:
    comparison = compare(study)
    sequential, replay, joint = comparison.groups
    sentences = [sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in describe_comparison(comparison)]

    def points(group: object, name: str) -> int:
        return round(100 * group.metrics[name].mean)  # type: ignore[attr-defined, no-any-return]

    lost = points(sequential, "forgetting")
    assert sentences[0] == f"sequential-lora forgets {lost} points and ends at {points(sequential, 'last_accuracy')} %."
    assert sentences[1].startswith(f"replay gives back {lost - points(replay, 'forgetting')} of them")
    gap = points(joint, "last_accuracy") - points(replay, "last_accuracy")
    assert f"replay stays {gap} points below it" in sentences[2]
    assert "Over 2 paired runs" in sentences[3]


def test_the_order_of_the_runs_does_not_change_the_story(study: list[Path]) -> None:
    assert describe_comparison(compare(study)) == describe_comparison(compare(study[::-1]))


def test_words_for_one_task_joint_and_domains(tmp_path: Path) -> None:
    single = compare([write_run(tmp_path / "single", tasks=1)]).groups[0]
    assert "forgetting is defined from the second task on" in describe_group(single)[1]
    joint = compare([write_run(tmp_path / "joint", "joint", tasks=3)]).groups[0]
    assert describe_group(joint)[0].startswith("It learned all 3 tasks at once and reaches")
    domains = compare([write_run(tmp_path / "domains", tasks=3, kind="domain-incremental")]).groups[0]
    assert "over the 3 domains" in describe_group(domains)[0]


@pytest.mark.parametrize("tasks", [1, 2, 13])
@pytest.mark.parametrize("method", ["sequential-lora", "joint"])
def test_a_report_of_any_length_is_whole(tasks: int, method: str, tmp_path: Path) -> None:
    page = page_of([write_run(tmp_path / "run", method, tasks=tasks, classes=2, examples=3)], tmp_path)
    assert "Every metric, with its definition" in page.text
    assert "None" not in page.text
    assert "nan" not in re.findall(r"\w+", page.text)


def test_matrix_cells_stand_in_their_row_and_column(one: Path, tmp_path: Path) -> None:
    matrix = json.loads((one / "results.json").read_text())["accuracy_matrix"]
    html = write_report([one], tmp_path / "out.html").read_text()
    table = re.search(r'<table class="numbers">.*?</table>', html, re.DOTALL)
    assert table is not None
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in table[0].split("<tr>")[2:]]
    assert rows == [["" if value is None else f"{100 * value:.1f}" for value in row] for row in matrix]


def test_every_name_is_escaped(tmp_path: Path) -> None:
    settings = {"note": "</pre><img src=x onerror=alert(3)>"}
    run = write_run(tmp_path / "<b>&run", "<i>method</i> \"&'", tasks=2, names=NASTY, settings=settings)
    other = write_run(tmp_path / "other", "sequential-lora", tasks=2, names=NASTY)
    for runs in ([run], [run, other]):
        page = page_of(runs, tmp_path)
        assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "iframe"})
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
        assert all(
            tag != "i" or "style" in attributes or "class" in attributes or not attributes
            for tag, attributes in page.tags
        )
        assert "<i>method</i> \"&'" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert "مرحبا بالعالم" in page.text
    assert "</pre><img src=x onerror=alert(3)>" in page.text


def test_an_unescaped_name_would_be_found(one: Path, tmp_path: Path) -> None:
    html = write_report([one], tmp_path / "out.html").read_text()
    page = Page(html.replace("class 3", "<script>alert(1)</script>"))
    assert "script" in {tag for tag, _ in page.tags}


def test_the_report_asks_for_nothing_from_outside(study: list[Path], tmp_path: Path) -> None:
    html = write_report(study, tmp_path / "out.html").read_text()
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert not re.search(r"@import|url\((?!#)", html)
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.named("meta"))


def test_ids_are_unique_and_references_have_a_target(study: list[Path], tmp_path: Path) -> None:
    html = write_report(study, tmp_path / "out.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:url\(#|xlink:href="#)([^)"]+)', html)) <= set(ids)


def test_every_plot_has_a_description(study: list[Path], tmp_path: Path) -> None:
    plots = page_of(study, tmp_path).named("svg")
    assert len(plots) >= 5
    assert all(plot.get("role") == "img" and len(plot.get("aria-label") or "") > 30 for plot in plots)


def test_plots_follow_the_page_colours(one: Path, tmp_path: Path) -> None:
    html = write_report([one], tmp_path / "out.html").read_text()
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--ink)" in drawn
    assert "var(--series-1)" in drawn
    assert "#1c2127" not in drawn
    assert "DejaVu" not in drawn


def test_names_that_look_like_markup_of_a_plot_stay_names(tmp_path: Path) -> None:
    name = '#0072b2 id="x"'
    runs = write_study(tmp_path, [name, "replay"], tasks=2)
    html = write_report(runs, tmp_path / "out.html").read_text()
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert f">{name}</text>" in drawn


def test_the_same_runs_give_the_same_bytes(one: Path, tmp_path: Path) -> None:
    first = write_report([one], tmp_path / "first.html").read_bytes()
    assert first == write_report([one], tmp_path / "second.html").read_bytes()
    other = write_run(tmp_path / "other", tasks=4, seed=1)
    assert first != write_report([other], tmp_path / "third.html").read_bytes()


def test_metrics_that_are_not_defined_are_named_and_not_zero(one: Path, tmp_path: Path) -> None:
    page = page_of([one], tmp_path)
    assert re.search(r"Not defined here.*Forward transfer", page.text, re.DOTALL)
    assert not re.search(r"Forward transfer ↑", page.text)


def test_predictions_that_disagree_with_the_matrix_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=2)
    assert "Read this first" not in page_of([run], tmp_path).text
    results = json.loads((run / "results.json").read_text())
    results["accuracy_matrix"][1][0] = 0.999
    results["metrics"] = {}
    (run / "results.json").write_text(json.dumps(results))
    text = page_of([run], tmp_path).text
    assert "Read this first" in text
    assert "the accuracy on task 1 after task 2 is 0.999 in results.json" in text


def test_a_changed_base_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=2)
    results = json.loads((run / "results.json").read_text())
    results["model"]["base_unchanged"] = False
    (run / "results.json").write_text(json.dumps(results))
    assert "The base model's weights changed during" in page_of([run], tmp_path).text


def test_a_report_without_optional_parts_is_still_whole(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=2)
    results = json.loads((run / "results.json").read_text())
    for key in ("cost", "model", "seeds", "versions", "metrics", "method_config"):
        results.pop(key)
    for key in ("task_names", "classes_per_task", "train_examples", "hash", "modality"):
        results["stream"].pop(key)
    (run / "results.json").write_text(json.dumps(results))
    (run / "events.jsonl").unlink()
    page = page_of([run], tmp_path)
    assert "It ends at" in page.text
    assert "What it cost" not in page.text


def test_missing_predictions_leave_the_old_report_alone(one: Path, tmp_path: Path) -> None:
    out = write_report([one], tmp_path / "out.html")
    before = out.read_bytes()
    broken = write_run(tmp_path / "broken", tasks=2)
    (broken / "predictions.parquet").unlink()
    with pytest.raises(RunDirectoryError, match=r"predictions\.parquet is missing"):
        write_report([broken], out)
    assert out.read_bytes() == before


def test_a_folder_gets_report_html(one: Path, tmp_path: Path) -> None:
    assert write_report([one], tmp_path) == tmp_path / "report.html"
    assert write_report([one], tmp_path / "new" / "page.html").is_file()


def test_figures_are_written_as_svg_and_png(one: Path, tmp_path: Path) -> None:
    written = write_figures([one], tmp_path / "figures")
    assert {path.suffix for path in written} == {".svg", ".png"}
    assert {path.stem for path in written} >= {
        "accuracy-over-tasks",
        "run-1-matrix",
        "run-1-forgetting",
        "run-1-confusion",
    }
    for path in written:
        data = path.read_bytes()
        if path.suffix == ".png":
            assert data[:8] == b"\x89PNG\r\n\x1a\n"
            assert min(struct.unpack(">II", data[16:24])) > 300
        else:
            assert ElementTree.fromstring(data).tag.endswith("svg")
    again = write_figures([one], tmp_path / "again")
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]


@pytest.mark.slow
def test_fifty_tasks_and_four_runs_stay_small_and_fast(tmp_path: Path) -> None:
    runs = write_study(tmp_path, ["sequential-lora", "o-lora", "replay", "joint"], tasks=50, classes=10)
    started = time.perf_counter()
    path = write_report(runs, tmp_path / "out.html")
    assert time.perf_counter() - started < 10
    assert path.stat().st_size < 2_000_000


def console_errors(path: Path, folder: Path) -> list[str]:
    """What a browser complains about when it opens the page."""
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'page.png'}", "--window-size=1200,2000",
        path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert (folder / "page.png").stat().st_size > 10_000
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed; it checks the page as a reader sees it"
)
def test_a_browser_opens_the_report_without_complaint(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs", ["sequential-lora", "replay", "joint"], tasks=3, names=NASTY)
    path = write_report(runs, tmp_path / "out.html")
    assert console_errors(path, tmp_path) == []
    planted = tmp_path / "planted.html"
    planted.write_text(path.read_text().replace("</body>", "<script>alert(1)</script></body>"))
    assert any("Content Security Policy" in line for line in console_errors(planted, tmp_path))
