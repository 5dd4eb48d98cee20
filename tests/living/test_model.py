"""A living model: updates, the gate, moves, what is kept, and that it is the same learning as in one run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from living_tickets import EASY, WORDS, living, tickets

import contune
from contune.checks.run import same_state
from contune.checks.settings.texts import text_model
from contune.contract.state import State
from contune.engine.learner import Learner
from contune.engine.session import Session
from contune.errors import ConfigError, DataError, RunDirectoryError
from contune.living.data.sides import Seen, input_hashes, settled
from contune.living.model import LivingModel
from contune.living.store.objects import Objects
from contune.method.catalog import build_method
from contune.stream.task import Stream, Task

MONTHS = [("refund", "delivery"), ("login", "refund"), ("invoice",), ("refund", "login"), ("praise", "cancel")]


def state_at(model: LivingModel, version: int) -> State:
    found: State = model.folder.states.get(model.folder.version(model.folder.find(version))["state"])
    return found


def test_the_life_of_a_model(tmp_path: Path) -> None:
    said: list[str] = []
    model = living(tmp_path / "support")
    model = LivingModel.open(tmp_path / "support", say=said.append)
    with pytest.raises(ConfigError, match="not learned any task"):
        model.predict(["where is my parcel"])
    first = model.update(tickets(0, MONTHS[0]), name="january")
    assert (first.number, first.promoted, first.outcome) == (1, True, "promote")
    shuffled = [{**row, "label": "delivery" if row["label"] == "refund" else "refund"} for row in tickets(0, MONTHS[0])]
    bad = model.update(shuffled, name="shuffled")
    assert (bad.promoted, bad.outcome) == (False, "blocked")
    assert any("another answer elsewhere" in sentence for sentence in bad.found)
    assert any("With 1 suite of" in sentence for sentence in said)
    second = model.update(tickets(1, MONTHS[1]), name="february")
    assert (second.number, second.promoted) == (3, True)
    answers = model.predict([f"{WORDS['login']} 7", f"{WORDS['refund']} 8"])
    assert [(one.label, one.version) for one in answers] == [("login", 3), ("refund", 3)]
    assert all(0 < (one.score or 0) <= 1 for one in answers)
    rows = model.history()
    assert [row.parent for row in rows] == [None, 0, 1, 1]
    assert [row.live for row in rows] == [False, False, False, True]
    assert rows[3].gain is not None
    assert rows[3].gain > 0.3
    assert rows[3].forgetting is not None
    found = model.diff(1, 3)
    assert {one.name for one in found.suites} == {"january", "february"}
    assert all(one.label == "login" for one in found.changed if one.flip == "won")
    assert json.loads(json.dumps([row.values() for row in rows]))
    assert model.rollback(reason="a complaint") == 1
    assert model.predict([f"{WORDS['login']} 7"])[0].version == 1
    assert model.promote("february", reason="it was no fault of the model") == 3
    assert model.history()[1].served[-1][1] is not None
    assert model.verify() == []


def test_what_is_learned_is_the_same_as_in_one_run(tmp_path: Path) -> None:
    for method in ({"name": "ranpac", "form": "small", "random_features": 32}, {"name": "er", "size": 30}):
        train = {"epochs": 0} if method["name"] == "ranpac" else {"epochs": 1}
        months = [tickets(month, MONTHS[month % 5], each=6) for month in range(10)]
        model = living(tmp_path / str(method["name"]), method, train=train, held_out=0.0)
        for month, rows in enumerate(months):
            model.update(rows, name=f"month {month}", gate=False)
            model.promote(month + 1, reason="all are taken")
        options = {key: value for key, value in method.items() if key != "name"}
        learner = Learner(
            text_model(), build_method(str(method["name"]), options), train=train, kind="class-incremental"
        )
        tasks = [
            Task(f"month {month}", *of_one(rows), test=of_one(rows)[1].take([0])) for month, rows in enumerate(months)
        ]
        Session(learner, Stream("at once", "class-incremental", tuple(tasks))).run()
        once, living_state = learner.state(), state_at(model, 10)
        assert same_state(without_ids(once), without_ids(living_state)) is None


def without_ids(state: State) -> State:
    """A state without the ids of kept examples, which are hashes in a living model and rows in a run."""
    tensors = {name: tensor for name, tensor in state.tensors.items() if not name.endswith("/ids")}
    return State(tensors, state.values)


def of_one(rows: list[dict[str, str]]) -> tuple[tuple[str, ...], Any]:
    task = Stream.of(rows, rows, tasks=1, order_seed=None).tasks[0]
    return task.class_names, task.train


def test_an_update_reads_new_data_and_the_buffer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = living(tmp_path / "support", {"name": "er", "size": 10, "batch_size": 4}, train={"epochs": 1})
    for month in range(3):
        model.update(tickets(month, MONTHS[0], each=10), name=f"month {month}", gate=False)
        model.promote(f"month {month}", reason="all are taken")
    earlier = {
        part
        for name in model.folder.names("data")
        for part in model.folder.states.parts(model.folder.get("data", name)["state"])
    }
    read: list[str] = []
    real = Objects.get
    monkeypatch.setattr(Objects, "get", lambda self, name: read.append(name) or real(self, name))
    made = model.update(tickets(9, MONTHS[0], each=10), name="next", gate=False)
    assert not earlier & set(read)
    version = model.folder.version(made.id)
    steps = -(-version["found"]["learned"] // 32)
    assert version["cost"]["examples_backward"] == version["found"]["learned"] + 4 * steps


def test_an_example_keeps_its_side(tmp_path: Path) -> None:
    rows = tickets(0, ("refund", "delivery"), each=50)
    one = settled(task_of(rows), False, 0.2, Seen(), ())
    other = settled(task_of(rows[::-1][:60]), False, 0.2, Seen(), ())
    first, second = ({name for name, _ in found.tested} for found in (one, other))
    learned, again = ({name for name, _ in found.learned} for found in (one, other))
    assert first
    assert not first & again
    assert not second & learned
    assert not {name for name, _ in one.learned} & first


def task_of(rows: list[dict[str, str]]) -> Task:
    return Stream.of(rows, rows, tasks=1, order_seed=None).tasks[0]


def test_what_tests_is_never_learned_and_the_other_way_round(tmp_path: Path) -> None:
    model = living(tmp_path / "support", held_out=0.0)
    rows, other = tickets(0, MONTHS[0], each=8), tickets(1, MONTHS[0], each=8)
    model.update(rows, other, name="january")
    found = model.update(other + tickets(2, MONTHS[0], each=2), rows + tickets(3, MONTHS[0], each=2), name="february")
    version = model.folder.version(found.id)
    assert version["found"]["kept_out"] == 16
    assert version["found"]["not_tested"] == 16
    learned = {row for name in model.folder.names("data") for row, _ in model.folder.get("data", name)["rows"]}
    tested = {row for name in model.folder.names("suites") for row, _ in model.folder.get("suites", name)["rows"]}
    assert not learned & tested
    assert len(tested) == 20


def test_one_example_is_an_update_and_the_same_data_are_learned_once(tmp_path: Path) -> None:
    model = living(tmp_path / "support")
    model.update(tickets(0, MONTHS[0]), name="january")
    one = model.update([{"text": "the cat goodbye 1", "label": "cancel"}], name="one")
    assert model.folder.version(one.id)["found"]["learned"] == 1
    again = model.update(tickets(0, MONTHS[0]), name="january", gate=False)
    assert again.number == 3  # not what the live version has just learned
    model.promote("one", reason="by hand") if not one.promoted else None
    assert model.update([{"text": "the cat goodbye 1", "label": "cancel"}], name="one").again
    assert len(model.history()) == 4


def test_duplicates_and_contradictions_are_counted_before_learning(tmp_path: Path) -> None:
    said: list[str] = []
    model = LivingModel.open(living(tmp_path / "support", held_out=0.0).folder.path, say=said.append)
    rows = [*tickets(0, MONTHS[0], each=4), {"text": "same", "label": "refund"}, {"text": "same", "label": "refund"}]
    model.update(
        [*rows, {"text": "odd", "label": "refund"}, {"text": "odd", "label": "delivery"}], name="a", gate=False
    )
    assert any(sentence.startswith("1 examples came more than once") for sentence in said)
    assert any(sentence.startswith("1 examples have another answer") for sentence in said)


def test_classes_are_renamed_by_a_mapping(tmp_path: Path) -> None:
    model = living(tmp_path / "support")
    model.update(tickets(0, MONTHS[0]), name="january")
    other = [
        {**row, "label": "Geld zurück" if row["label"] == "refund" else row["label"]} for row in tickets(1, MONTHS[0])
    ]
    model.update(other, name="february", labels={"Geld zurück": "refund"}, gate=False)
    assert model.folder.version(model.folder.find("february"))["classes"] == ["delivery", "refund"]
    with pytest.raises(ConfigError, match="renames 'refnd'"):
        model.update(other, name="march", labels={"refnd": "refund"})


def test_files_frames_and_data_sets_come_to_the_same_version(tmp_path: Path) -> None:
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    rows = tickets(0, MONTHS[0], each=6)
    file = tmp_path / "january.csv"
    pandas.DataFrame(rows).to_csv(file, index=False)
    pairs = ([row["text"] for row in rows], [row["label"] for row in rows])
    sources = [rows, pandas.DataFrame(rows), datasets.Dataset.from_list(rows), pairs, file, str(file)]
    made = set()
    model = living(tmp_path / "support")
    for source in sources:
        made.add(model.update(source, name="january", gate=False).id)
    assert len(made) == 1
    assert model.update(file, gate=False).name == "january"
    with pytest.raises(DataError, match="does not exist"):
        model.update(tmp_path / "february.csv")


def files_with(folder: Path, text: str) -> list[Path]:
    """Files in which a text stands, as it is or as JSON writes it."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.parametrize(("buffer", "suites"), [("none", "none"), ("features", "raw"), ("raw", "raw")])
def test_what_the_policy_forbids_is_nowhere_on_the_disk(buffer: str, suites: str, tmp_path: Path) -> None:
    model = living(tmp_path / "support", policy={"buffer": buffer, "suites": suites}, held_out=0.0)
    learned = [*tickets(0, MONTHS[0], each=8), {"text": "planted-in-learning", "label": "refund"}]
    tested = [*tickets(1, MONTHS[0], each=8), {"text": "planted-in-testing", "label": "refund"}]
    assert model.update(learned, tested, name="january").promoted
    assert bool(files_with(tmp_path, "planted-in-learning")) is (buffer == "raw")
    assert bool(files_with(tmp_path, "planted-in-testing")) is (suites == "raw")
    row = model.history()[1]
    assert (
        row.kept
        == f"learned: {'raw' if buffer == 'raw' else 'hashes'}; tested: {'raw' if suites == 'raw' else 'hashes'}"
    )
    assert model.update(tickets(2, MONTHS[1], each=20), name="february", gate=True).outcome is not None
    assert model.verify() == []


def test_a_method_with_a_buffer_is_refused_where_the_policy_forbids_it(tmp_path: Path) -> None:
    model = living(tmp_path / "support", "er", policy={"buffer": "none"})
    with pytest.raises(ConfigError, match="buffer is none"):
        model.update(
            [*tickets(0, MONTHS[0], each=8), {"text": "planted-in-learning", "label": "refund"}], name="january"
        )
    assert not files_with(tmp_path, "planted-in-learning")
    assert len(model.history()) == 1


def test_what_does_not_fit_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    for keys, said in (({"method": "joint"}, "all tasks at once"), ({"gate": {"margn": 1}}, "did you mean 'margin'")):
        with pytest.raises(ConfigError, match=said):
            LivingModel.create(tmp_path / "support", text_model(), **{"method": "ranpac", **keys})
    assert not (tmp_path / "support").exists()
    living(tmp_path / "support")
    with pytest.raises(RunDirectoryError, match="never overwritten"):
        living(tmp_path / "support")
    with pytest.raises(ConfigError, match="create another model"):
        LivingModel.open(tmp_path / "support", method="er")


def test_a_flipped_bit_anywhere_is_found_and_named(tmp_path: Path) -> None:
    model = living(tmp_path / "support")
    model.update(tickets(0, MONTHS[0], each=10), name="january")
    draw = np.random.default_rng(0)
    files = [path for path in model.folder.path.rglob("*") if path.is_file() and path.name != ".lock"]
    for path in files:
        data = path.read_bytes()
        for at in draw.integers(0, 8 * len(data), size=3).tolist() if data else ():
            flipped = bytearray(data)
            flipped[at // 8] ^= 1 << at % 8
            path.write_bytes(bytes(flipped))
            assert model.verify(), f"{path} bit {at}"
        path.write_bytes(data)
    assert model.verify() == []
    state = model.folder.version(model.folder.find(1))["state"]
    model.folder.objects.path(state).write_bytes(b"{}")
    (said, *_) = model.verify()
    assert state[:12] in said
    assert "1 (january)" in said


def test_gc_drops_what_nobody_needs_and_nothing_else(tmp_path: Path) -> None:
    model = living(tmp_path / "support")
    model.update(tickets(0, MONTHS[0], each=10), name="january")
    before = state_at(model, 1)
    model.folder.objects.put(b"left over by a killed command")
    cleared = model.gc()
    assert (cleared.objects, cleared.bytes) == (1, 29)
    assert same_state(before, state_at(model, 1)) is None
    assert model.gc().objects == 0
    assert model.verify() == []


def test_the_public_face_knows_it() -> None:
    assert contune.LivingModel is LivingModel
    assert EASY["floor"] == 0.3


def test_input_hashes_do_not_depend_on_labels() -> None:
    task = task_of([{"text": "a", "label": "x"}, {"text": "a", "label": "y"}])
    assert len(set(input_hashes(task.train))) == 1
