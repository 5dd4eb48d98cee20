"""Right labels that users sent: whole lines, whatever a command was killed at, and swept with what was forgotten."""

import json
import multiprocessing
from pathlib import Path

import pytest
from living_tickets import living, tickets

from contune import _files
from contune.living.store.feedback import add_feedback, drop_feedback, is_forgotten


def line(number: int, label: str = "refund", text: str = "aaaa") -> dict[str, object]:
    return {"text": text, "label": label, "feedback": {"hash": f"{number:064x}", "label": label}}


def kept(folder: Path) -> list[int]:
    """The numbers of all lines, each of which is whole."""
    lines = [one for path in sorted((folder / "feedback").glob("*.jsonl")) for one in path.read_bytes().splitlines()]
    return [int(json.loads(one)["feedback"]["hash"], 16) for one in lines]


@pytest.mark.parametrize("block", [1, 7, 2**16])
def test_a_part_of_a_line_is_cut_off(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "BLOCK", block)
    path = add_feedback(tmp_path, line(1))
    add_feedback(tmp_path, line(2, text="é" * 100))
    for part in (b'{"text": "a', b"{" * 300):
        path.write_bytes(path.read_bytes() + part)
        add_feedback(tmp_path, line(3))
    assert kept(tmp_path) == [1, 2, 3, 3]
    path.write_bytes(b"never ended")
    add_feedback(tmp_path, line(4))
    assert kept(tmp_path) == [4]


def many(folder: Path, start: int) -> None:
    for number in range(start, start + 50):
        add_feedback(folder, line(number))


def test_two_processes_lose_no_line(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=many, args=(tmp_path, start)) for start in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(kept(tmp_path)) == [*range(50), *range(100, 150)]


def test_what_was_forgotten_goes(tmp_path: Path) -> None:
    assert drop_feedback(tmp_path, is_forgotten({"x"})) == 0
    for number, label in ((1, "refund"), (2, "praise"), (3, "refund")):
        add_feedback(tmp_path, line(number, label))
    assert drop_feedback(tmp_path, is_forgotten({f"{1:064x}"}, {"praise"})) == 2
    assert kept(tmp_path) == [3]
    assert drop_feedback(tmp_path, is_forgotten({f"{3:064x}"})) == 1
    assert list((tmp_path / "feedback").glob("*.jsonl")) == []


def test_gc_drops_what_is_older_than_the_policy_allows(tmp_path: Path) -> None:
    model = living(tmp_path / "support", policy={"days": 30})
    model.update(tickets(0, ("refund", "delivery")), name="january")
    new = add_feedback(model.folder.path, line(1))
    old = new.with_name("2020-01-31.jsonl")
    old.write_bytes(new.read_bytes())
    model.gc()
    assert (new.exists(), old.exists()) == (True, False)
    assert model.verify() == []
