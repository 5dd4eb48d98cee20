"""The inbox: every file is learned once, in order, and a bad one stops nobody."""

import csv
import os
from pathlib import Path

import pytest
from living_tickets import living, tickets
from typer.testing import CliRunner

from contune.cli import app
from contune.cli.living.inbox import seconds
from contune.errors import ConfigError, DataError
from contune.living.model import LivingModel
from contune.living.watching import watch


def put(path: Path, rows: list[dict[str, str]], *, old: bool = True) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if old:
        os.utime(path, (0, 0))


def test_every_file_is_learned_once(tmp_path: Path) -> None:
    inbox, said = tmp_path / "inbox", list[str]()
    inbox.mkdir()
    model = living(tmp_path / "support")
    put(inbox / "2_february.csv", tickets(1, ("login",)))
    put(inbox / "1_january.csv", tickets(0, ("refund", "delivery")))
    put(inbox / "3_bad.csv", [{"words": "a", "label": "b"}])
    put(inbox / "4_being_written.csv", tickets(2, ("invoice",)), old=False)
    assert watch(model, inbox, rows=1000, say=said.append) == []
    assert "120 new examples" in said[-1]
    found = watch(model, inbox, rows=100, say=said.append)
    assert [(one.file, one.version) for one in found] == [
        ("1_january.csv", 1),
        ("2_february.csv", 2),
        ("3_bad.csv", None),
    ]
    assert "no text column" in said[-1]
    assert watch(LivingModel.open(tmp_path / "support"), inbox, say=said.append) == []
    done = CliRunner().invoke(app, ["watch", str(tmp_path / "support"), str(inbox), "--once"])
    assert (done.exit_code, done.output) == (0, "")
    assert model.verify() == []


def test_it_goes_on_after_a_kill_between_learning_and_writing_down(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    model = living(tmp_path / "support")
    put(inbox / "january.csv", tickets(0, ("refund", "delivery")))
    model.update(inbox / "january.csv")
    (taken,) = watch(model, inbox, say=lambda text: None)
    assert taken.version == 1
    assert len(model.history()) == 2


def test_it_looks_again_and_again(tmp_path: Path) -> None:
    model, waits = living(tmp_path / "support"), list[float]()

    def wait(time: float) -> None:
        waits.append(time)
        if len(waits) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(model, tmp_path, every=seconds("1h"), say=lambda text: None, wait=wait)
    assert waits == [3600.0] * 3
    with pytest.raises(DataError, match="no folder"):
        watch(model, tmp_path / "nowhere", say=lambda text: None)
    with pytest.raises(ConfigError, match="such as 10m"):
        seconds("soon")
