"""The folder on disk: blocks that are shared, records that know of any change, moves that end whatever happens."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from disk_faults import ERRORS, Killed, fault_at
from hypothesis import given
from hypothesis import strategies as st

import contune.living.store.folder as folder_module
from contune.contract.state import State
from contune.errors import ConfigError, ContuneError, RunDirectoryError
from contune.living.store.folder import Folder, version_id
from contune.living.store.log import Log
from contune.living.store.objects import Objects
from contune.living.store.sealed import sealed, unsealed
from contune.living.store.sharing import shared
from contune.living.store.states import States


def equal(first: State, second: State) -> bool:
    same = all(
        first.tensors[name].dtype == tensor.dtype
        and first.tensors[name].shape == tensor.shape
        and first.tensors[name].contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes()
        for name, tensor in second.tensors.items()
    )
    return same and first.tensors.keys() == second.tensors.keys() and first.values == second.values


@given(st.lists(st.integers(0, 8), max_size=30), st.lists(st.lists(st.integers(0, 8), max_size=8), max_size=5))
def test_rows_come_back_in_their_order(rows: list[int], before: list[list[int]]) -> None:
    found = shared(rows, before)
    pool = [row for block in found.blocks for row in before[block]] + [rows[at] for at in found.new]
    order = range(len(pool)) if found.order is None else found.order.tolist()
    assert [pool[at] for at in order] == rows


def example_states() -> list[State]:
    """A buffer whose rows are replaced, a head that grows by rows, an adapter that grows by rank, scalars, odd shapes."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (40, 8, 8), generator=draw, dtype=torch.uint8)
    rank, head = torch.randn(64, 4, generator=draw), torch.randn(3, 32, generator=draw)
    states = []
    for number in range(6):
        rows = torch.arange(20) + 2 * number
        rows[::3] = number
        tensors = {
            "buffer/images": images[rows],
            "rank": torch.cat([rank + at for at in range(number + 1)], dim=1),
            "head": torch.cat([head * (at + 1) for at in range(number + 1)]),
            "nothing": torch.zeros(0, 32),
            "one": torch.tensor(float(number), dtype=torch.float64),
            "flags": torch.tensor([True, number % 2 == 0]),
            "half": torch.randn(4, 64, generator=draw).bfloat16().float(),
        }
        texts = [f"ticket {at}" for at in rows.tolist()]
        states.append(State(tensors, {"buffer": {"texts": texts, "n": [1, {"a": None}]}, "nan": 0.5}))
    return states


def test_states_come_back_to_the_bit_and_share(tmp_path: Path) -> None:
    states, kept = States(Objects(tmp_path)), example_states()
    names: list[str] = []
    for state in kept:
        names.append(states.put(state, names[-1] if names else None))
    assert all(equal(states.get(name), state) for name, state in zip(names, kept, strict=True))
    growing = {"head", "rank"}
    for name, then in zip(names[1:], names[:-1], strict=True):
        new = states.record(name)["tensors"]
        old = states.record(then)["tensors"]
        for tensor in growing:  # all that was there is taken over, and one block is new
            now, before = ([name for name, _ in found[tensor]["blocks"]] for found in (new, old))
            assert now[: len(before)] == before
            assert len(now) == len(before) + 1
    written = set().union(*(states.parts(name) for name in names))
    assert written == set(states.objects.names())


def test_a_growing_tensor_costs_what_is_new(tmp_path: Path) -> None:
    states = States(Objects(tmp_path))
    names: list[str] = []
    whole = torch.randn(10 * 256, 64, generator=torch.Generator().manual_seed(0))
    for number in range(1, 11):
        names.append(states.put(State({"head": whole[: 256 * number]}, {}), names[-1] if names else None))
    total = sum(256 * number * 64 * 4 for number in range(1, 11))
    unique = sum(states.objects.size(name) for name in states.objects.names())
    assert unique / total < 0.2  # 10 parts of 55, and the records


def test_any_flipped_bit_of_a_record_is_found() -> None:
    data = sealed({"name": "january", "rows": [["a", 1]], "none": None})
    assert unsealed(data)["name"] == "january"
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(RunDirectoryError, match="damaged"):
                unsealed(bytes(flipped))


def test_a_line_of_the_log_cannot_be_changed_or_taken_out(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    for number in range(4):
        log.add("made", version=str(number))
    assert [line["version"] for line in log.lines()] == list("0123")
    whole = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(whole[:1] + whole[2:]))
    with pytest.raises(RunDirectoryError, match="does not follow"):
        log.lines()
    log.path.write_bytes(b"".join([whole[0], whole[1].replace(b'"1"', b'"7"'), *whole[2:]]))
    with pytest.raises(RunDirectoryError, match="line 2"):
        log.lines()


def test_a_line_cut_short_does_not_count(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.add("made", version="0")
    with log.path.open("ab") as file:
        file.write(b'{"n":2,"bef')
    assert len(log.lines()) == 1
    log.add("made", version="1")
    assert [line["n"] for line in log.lines()] == [1, 2]


def root() -> dict[str, object]:
    return {"id": version_id(None, None, "c", "0"), "parent": None, "name": "start", "state": None}


def made_folder(path: Path) -> Folder:
    return Folder.create(path, {"method": "er", "id": "c"}, lambda _folder: root())


def learn(folder: Folder, name: str) -> str:
    """What an update does on the disk, without a model: a state, a version, the pointer."""
    with folder.locked():
        command = f"update {name}"
        done = folder.settle(command)
        if done is not None:
            return done
        parent = folder.live()
        if folder.version(parent)["name"] == name:
            return parent
        before = folder.version(parent)["state"]
        number = len(name)
        state = State({"head": torch.arange(64.0 * number).reshape(number, 64)}, {"texts": [name] * 8})
        new = version_id(parent, name, folder.config()["id"], "0")
        if not folder.has("versions", new):
            folder.put("data", {"name": name})
            kept = folder.states.put(state, before)
            folder.put_version({"id": new, "parent": parent, "name": name, "state": kept})
        folder.move(new, "promoted", command, reason="it is better")
        return new


def back(folder: Folder) -> str:
    with folder.locked():
        done = folder.settle("rollback")
        if done is not None:
            return done
        parent = folder.version(folder.live())["parent"]
        if parent is None:
            raise ConfigError("nothing is before version 0")
        folder.move(parent, "rolled back", "rollback", reason="it is worse")
        return str(parent)


def readable(folder: Folder) -> str:
    """The version that answers, whose record, state and log can be read."""
    live = folder.live()
    state = folder.version(live)["state"]
    if state is not None:
        folder.states.get(state)
    folder.log.lines()
    return live


COMMANDS: dict[str, Callable[[Folder], str]] = {"update": lambda folder: learn(folder, "februar"), "rollback": back}


def sweep(tmp_path: Path, command: str, error: str) -> list[str]:
    """Fail at every point of a command; gives what went wrong."""
    wrong: list[str] = []
    expected = None
    number = 0
    while True:
        folder = made_folder(tmp_path / f"{command}-{error}-{number}")
        old = learn(folder, "jan")
        want = expected or version_id(old, "februar", folder.config()["id"], "0")
        expected = want if command == "update" else root()["id"]  # type: ignore[assignment]
        ended = False
        with fault_at(number, ERRORS[error]) as seen:
            try:
                COMMANDS[command](folder)
                ended = len(seen) <= number
            except (Killed, OSError):
                pass
        if ended:
            assert number > 6
            return wrong
        try:
            if readable(folder) not in (old, expected):
                wrong.append(f"{number} {seen[-1]}: neither old nor new")
            if COMMANDS[command](folder) != expected or readable(folder) != expected:
                wrong.append(f"{number} {seen[-1]}: another version")
            moves = [line for line in folder.log.lines() if line["event"] != "made" and line["version"] == expected]
            if len(moves) != 1 or folder.intent() is not None:
                wrong.append(f"{number} {seen[-1]}: {len(moves)} lines about one move")
        except (ContuneError, OSError) as found:
            wrong.append(f"{number} {seen[-1]}: {found}")
        number += 1


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_fault_at_any_point_leaves_old_or_new_and_the_command_arrives(
    command: str, error: str, tmp_path: Path
) -> None:
    assert sweep(tmp_path, command, error) == []


def in_place(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def test_writing_in_place_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "write_bytes", in_place)
    assert any("damaged" in found for found in sweep(tmp_path, "update", "killed"))


def test_moving_the_pointer_before_the_version_is_there_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Folder.put_version

    def pointer_first(folder: Folder, manifest: dict[str, str]) -> str:
        if manifest["parent"] is not None:
            folder_module.write_bytes(folder.path / "refs" / "live", manifest["id"].encode() + b"\n")
        return real(folder, manifest)

    monkeypatch.setattr(Folder, "put_version", pointer_first)
    assert any("names no version" in found for found in sweep(tmp_path, "update", "killed"))


def test_a_move_without_intent_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_intent(folder: Folder, to: str, event: str, command: str, **values: str) -> None:
        folder_module.write_bytes(folder.path / "refs" / "live", to.encode() + b"\n")
        folder.log.add(event, version=to, **values)

    monkeypatch.setattr(Folder, "move", no_intent)
    assert sweep(tmp_path, "rollback", "killed")


def test_another_process_is_kept_out(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "model")
    with folder.locked(), pytest.raises(RunDirectoryError, match="another contune process"), folder.locked():
        pass


def test_versions_are_found_by_number_name_and_id(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "model")
    made = learn(folder, "jan")
    assert folder.find(1) == folder.find("jan") == folder.find(made[:8]) == made
    with pytest.raises(ConfigError, match="contune history"):
        folder.find("may")
    with pytest.raises(RunDirectoryError, match="contune create"):
        Folder.open(tmp_path)
    json.loads((tmp_path / "model" / "config.json").read_text())
