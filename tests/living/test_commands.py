"""The commands: a life from the shell, exit codes, and a page that needs nothing else."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from living_tickets import EASY, tickets
from typer.testing import CliRunner, Result

from contune.checks.settings.texts import text_model
from contune.cli import app
from contune.errors import ConfigError
from contune.living.model import LivingModel
from contune.living.pages.page import render


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def support(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned January, was offered shuffled labels, and has learned March."""
    home = tmp_path_factory.mktemp("life")
    rules = [word for key, value in EASY.items() for word in ("--set", f"gate.{key}={value}")]
    folder = home / "support"
    (home / "policy.yaml").write_text("suites: raw\nbuffer: raw\n")
    method = [
        "--model",
        text_model(),
        "--method",
        "ranpac",
        "--set",
        "method.form=small",
        "--set",
        "method.random_features=64",
    ]
    made = run("create", folder, *method, "--policy", home / "policy.yaml", "--set", "device=cpu", *rules)
    assert made.exit_code == 0, made.output
    files = {
        "january": tickets(0, ("refund", "delivery")),
        "february": [
            {**row, "label": {"refund": "delivery", "delivery": "refund"}[row["label"]]}
            for row in tickets(1, ("refund", "delivery"), each=120)
        ],
        "march": tickets(2, ("login", "refund")),
    }
    codes = [run("update", folder, write(home / f"{name}.csv", rows), "-q").exit_code for name, rows in files.items()]
    assert codes == [0, 3, 0]
    return folder


def test_the_life_is_told(support: Path) -> None:
    told = json.loads(run("history", support, "--json").output)
    assert [row["outcome"] for row in told["versions"]] == [None, "promote", "blocked", "promote"]
    assert told["policy"] == {"buffer": "raw", "suites": "raw", "days": None}
    assert "blocked" in run("history", support).output
    assert run("gate", support, "february").exit_code == 3
    assert "login" in run("diff", support, 1, 3).output
    assert "every byte" in run("verify", support).output


def test_answers_come_from_the_live_version(support: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("012345 password 9\naaaa money back 3\n")
    answers = [json.loads(line) for line in run("predict", support, tmp_path / "new.txt").output.splitlines()]
    assert [(one["prediction"], one["version"]) for one in answers] == [("login", 3), ("refund", 3)]
    assert run("rollback", support, "--reason", "a complaint").output == "version 1 answers now\n"
    answers = [json.loads(line) for line in run("predict", support, tmp_path / "new.txt").output.splitlines()]
    assert {one["version"] for one in answers} == {1}
    assert run("promote", support, 3, "--reason", "no fault found").exit_code == 0
    made = run("export", support, "--out", tmp_path / "out", "--format", "safetensors")
    assert (tmp_path / "out" / "head.safetensors").is_file(), made.output


def test_mistakes_are_one_sentence(support: Path, tmp_path: Path) -> None:
    for words, said in (
        (("create", tmp_path / "x"), "--model and --method"),
        (("update", support, "may.csv", "--rename", "Storno"), "OLD=NEW"),
        (("promote", support, "may", "--reason", "x"), "no version 'may'"),
    ):
        found = run(*words).exception
        assert isinstance(found, ConfigError)
        assert said in str(found)


def test_help_teaches(support: Path) -> None:
    for command in ("create", "update", "gate", "rollback", "forget", "history", "diff", "verify", "promote", "gc"):
        text = run(command, "--help").output
        assert "contune" in text or command in ("gate", "verify", "gc", "promote")
    assert "4 not enough" in " ".join(run("update", "--help").output.split())


class Tags(HTMLParser):
    """All tags and addresses of a page, and whether they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "link", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "use", "rect"):
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_whole_and_asks_nobody(support: Path, tmp_path: Path) -> None:
    assert run("report", support, "--out", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.wrong == tags.open == []
    assert [one for one in tags.addresses if not one.startswith(("#", "data:"))] == []
    assert "<script" not in page
    assert "Held back by the gate: february." in page
    assert re.search(r"n 1\d, \d+–\d+", page)  # examples and interval of a cell
    assert page.count('role="img"') == 3  # a forest plot for each gate
    assert "Change of every suite" in page


def test_names_are_escaped(tmp_path: Path) -> None:
    rules = {"device": "cpu", "gate": EASY, "train": {"epochs": 0}}
    model = LivingModel.create(
        tmp_path / "support", text_model(), {"name": "ranpac", "form": "small", "random_features": 16}, **rules
    )
    rows = tickets(0, ("refund", "delivery"), each=10)
    model.update([{**row, "label": f"<b>{row['label']}"} for row in rows], name="<script>alert(1)</script>")
    page = render(model.folder, model.config)
    assert "<script>" not in page
    assert "<b>refund" not in page
