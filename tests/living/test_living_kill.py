"""Killed at any moment, a command leaves the old version or the new one, and when repeated arrives at the same."""

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from disk_faults import ERRORS, Killed, fault_at
from living_tickets import living, tickets
from test_store import back, learn, made_folder, readable, root

from contune.living.model import LivingModel
from contune.living.store.folder import Folder, version_id

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


def killed(work: Callable[[], object], point: int, delay: float) -> str:
    """Fork, do the work there, and kill -9 it at a point of the disk or after a delay; gives where it ended."""
    child = os.fork()
    if child == 0:

        def die() -> BaseException:
            os.kill(os.getpid(), signal.SIGKILL)
            return Killed()

        with fault_at(point if point >= 0 else None, die):
            work()
        os._exit(0)
    if point < 0:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else "ended"


def kills(home: Path, count: int) -> tuple[list[str], list[str]]:
    """So many kills of updates and rollbacks; gives what went wrong, and how each process ended."""
    draw, wrong, ends = random.Random(0), [], []
    for number in range(count):
        folder = made_folder(home / str(number))
        old = learn(folder, "jan")
        work, expected = (
            (partial(learn, Folder(folder.path), "februar"), version_id(old, "februar", "c", "0"))
            if number % 2
            else (partial(back, Folder(folder.path)), str(root()["id"]))
        )
        point = draw.randrange(30 if number % 2 else 10) if number % 3 else -1
        ends.append(killed(work, point, draw.random() * 0.01))
        if readable(folder) not in (old, expected):
            wrong.append(f"{number}: neither old nor new after point {point}")
        if folder.live() == old or folder.intent() is not None:
            work()
        if readable(folder) != expected or folder.intent() is not None:
            wrong.append(f"{number}: arrived elsewhere after point {point}")
        shutil.rmtree(folder.path)
    return wrong, ends


def test_kills_leave_old_or_new(tmp_path: Path) -> None:
    wrong, ends = kills(tmp_path, 30)
    assert wrong == []
    assert ends.count("killed") > 15


@pytest.mark.slow
def test_five_hundred_kills_leave_old_or_new(tmp_path: Path) -> None:
    wrong, ends = kills(tmp_path, 500)
    assert wrong == []
    assert ends.count("killed") > 300


def points_of_an_update(tmp_path: Path, chosen: Callable[[int], list[int]]) -> None:
    """Fail at some points of a whole update, each in every way; the same command arrives at the same version."""
    rows = tickets(1, ("login",), each=40)
    start = living(tmp_path / "start", {"name": "ranpac", "form": "small", "random_features": 16})
    assert start.update(tickets(0, ("refund", "delivery"), each=20), name="january").promoted
    whole = tmp_path / "whole"
    shutil.copytree(start.folder.path, whole)
    with fault_at(None, Killed) as seen:
        expected = LivingModel.open(whole).update(rows, name="february")
    assert expected.promoted
    for number, point in enumerate(chosen(len(seen))):
        path = tmp_path / f"at {point}"
        shutil.copytree(start.folder.path, path)
        model = LivingModel.open(path)
        with fault_at(point, list(ERRORS.values())[number % len(ERRORS)]), pytest.raises((Killed, OSError)):
            model.update(rows, name="february")
        assert model.folder.live() in (model.folder.find(1), expected.id)
        made = LivingModel.open(path).update(rows, name="february")
        assert (made.id, made.number, made.promoted) == (expected.id, 2, True)
        assert LivingModel.open(path).verify() == []
        shutil.rmtree(path)


def test_some_points_of_an_update(tmp_path: Path) -> None:
    points_of_an_update(tmp_path, lambda count: [*range(5, count, max(count // 4, 1)), count - 2, count - 1])


@pytest.mark.slow
def test_every_point_of_an_update(tmp_path: Path) -> None:
    points_of_an_update(tmp_path, lambda count: list(range(count)))


@pytest.mark.parametrize("error", ERRORS)
def test_gc_may_be_stopped_anywhere(error: str, tmp_path: Path) -> None:
    model = living(tmp_path / "start", {"name": "ranpac", "form": "small", "random_features": 16})
    model.update(tickets(0, ("refund", "delivery"), each=20), name="january")
    for at in range(3):
        model.folder.objects.put(f"left over {at}".encode())
    for point in range(4):
        path = tmp_path / f"at {point}"
        shutil.copytree(model.folder.path, path)
        stopped = LivingModel.open(path)
        with fault_at(point, ERRORS[error]), contextlib.suppress(Killed, OSError):
            stopped.gc()
        assert stopped.verify() == []
        stopped.gc()
        assert stopped.gc().objects == 0
        assert stopped.predict(["aaaa money back 1"])[0].label == "refund"
