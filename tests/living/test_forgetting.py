"""Forgetting: equal to never having seen, by sums or by learning again; nothing of it stays on the disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from living_tickets import living, tickets

from contune.contract.state import State
from contune.errors import ConfigError
from contune.living.data.sides import input_hashes
from contune.living.model import LivingModel
from contune.stream.task import Stream

MONTHS = [("refund", "delivery"), ("login", "refund"), ("invoice", "delivery")]
ER = {"name": "er", "size": 30}
SUMS = {"name": "ranpac", "form": "small", "random_features": 32, "strength": 100.0}
PLANTED = {"text": "planted 4711", "label": "delivery"}


def lived(path: Path, method: Any, without: str | None = None, months: tuple[int, ...] = (0, 1, 2)) -> LivingModel:
    """A model that has lived through some months, perhaps without ever seeing a class."""
    model = living(path, method, train={"epochs": 0 if method is SUMS else 1})
    for month in months:
        rows = [*tickets(month, MONTHS[month], each=10), *([PLANTED] if month == 0 else [])]
        model.update([row for row in rows if row["label"] != without], name=f"month {month}", gate=False)
        model.promote(f"month {month}", reason="all are taken")
    return model


def live_state(model: LivingModel) -> State:
    found: State = model.folder.states.get(model.folder.version(model.folder.live())["state"])
    return found


def files_with(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_learning_again_gives_the_version_of_a_model_that_never_saw_it(tmp_path: Path) -> None:
    model = lived(tmp_path / "seen", ER)
    never = lived(tmp_path / "never", ER, without="delivery")
    certificate = model.forget(classes=["delivery"])
    assert certificate.way == "learned again"
    assert model.folder.live() == never.folder.live() == certificate.version
    kept, other = live_state(model), live_state(never)
    assert kept.values == other.values
    assert all(torch.equal(kept.tensors[name], other.tensors[name]) for name in other.tensors)
    assert not files_with(tmp_path / "seen", PLANTED["text"])
    assert model.verify() == []
    with pytest.raises(ConfigError, match="cannot be used"):
        model.rollback(3, reason="no")
    assert "delivery" not in {one.label for one in model.predict([PLANTED["text"], "zz zz parcel late"])}


def test_an_update_is_forgotten_as_if_it_had_not_come(tmp_path: Path) -> None:
    model = lived(tmp_path / "seen", ER)
    never = lived(tmp_path / "never", ER, months=(0, 2))
    assert model.forget(update="month 1").version == never.folder.live()


@pytest.mark.parametrize("given", [False, True], ids=["kept", "given again"])
def test_sums_give_a_class_up(given: bool, tmp_path: Path) -> None:
    model = lived(tmp_path / "seen", SUMS)
    never = lived(tmp_path / "never", SUMS, without="delivery")
    rows = [*tickets(0, MONTHS[0], each=10), PLANTED, *tickets(2, MONTHS[2], each=10)]
    certificate = model.forget(classes=["delivery"], examples=rows if given else None)
    assert certificate.way == "subtracted"
    one, other = (live_state(found).tensors["head/gram"] for found in (model, never))
    assert float((one - other).abs().max() / other.abs().max()) < 1e-6  # float32 features of other batches
    assert not files_with(tmp_path / "seen", PLANTED["text"])
    assert model.verify() == []
    assert "delivery" not in {one.label for one in model.predict([PLANTED["text"], "zz zz parcel late"])}
    assert model.update(tickets(7, ("login",), each=10), name="later", gate=False).number == 5


def test_single_examples_are_forgotten_by_their_hash(tmp_path: Path) -> None:
    model = lived(tmp_path / "seen", ER)
    (name,) = input_hashes(Stream.of([PLANTED], [PLANTED], tasks=1).tasks[0].train)
    certificate = model.forget(ids=[name[:16]])
    assert certificate.rows == (name,)
    assert not files_with(tmp_path / "seen", PLANTED["text"])
    for wrong, said in (({"ids": ["abc"]}, "12 signs"), ({"classes": ["weather"]}, "check the names")):
        with pytest.raises(ConfigError, match=said):
            model.forget(**wrong)


def test_without_raw_examples_they_must_be_given_again(tmp_path: Path) -> None:
    model = living(tmp_path / "seen", SUMS, policy={"buffer": "none"}, held_out=0.0)
    rows = tickets(0, MONTHS[0], each=10)
    model.update(rows, name="january", gate=False)
    model.promote("january", reason="by hand")
    with pytest.raises(ConfigError, match="--examples"):
        model.forget(classes=["delivery"])
    assert model.forget(classes=["delivery"], examples=rows).way == "subtracted"
    assert model.verify() == []


def test_what_was_not_swept_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contune.living.forgetting.clear", lambda folder, policy: None)  # killed before the end
    model = lived(tmp_path / "seen", ER)
    model.forget(classes=["delivery"])
    assert any("still holds what was forgotten" in said for said in model.verify())
    monkeypatch.undo()
    model.gc()
    assert model.verify() == []
    assert not files_with(tmp_path / "seen", PLANTED["text"])


def test_forgetting_twice_retires_what_the_first_left(tmp_path: Path) -> None:
    model = lived(tmp_path / "seen", SUMS)
    first = model.forget(classes=["delivery"])
    second = model.forget(classes=["login"])
    assert (first.way, second.way) == ("subtracted", "subtracted")
    assert first.version in model.folder.retired()
    assert {one.label for one in model.predict(["zz zz parcel late", "012345 password"])} <= {"refund", "invoice"}
    assert model.verify() == []
    kept = model.folder.version(first.version)["state"]
    model.folder.objects.path(kept).write_bytes(b"put back by a backup")
    assert any("still there" in said or "damaged" in said for said in model.verify())
