"""What all tests share."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the test workers share the cores; more threads only wait for each other
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")  # tiny models load faster without threads

settings.register_profile("contune", deadline=None, derandomize=True)  # the same examples, however busy the machine
settings.load_profile("contune")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the project; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("CONTUNE_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"the real data and models are not at {folder}; set CONTUNE_SHARED to where they are")
    return folder


@pytest.fixture(autouse=True)
def no_flushing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Living models write thousands of small files in tests; a kill does not undo what is written, so nothing is flushed."""
    if request.path.parent.name in ("living", "serve"):
        monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A living model of three versions, of which version 1 answers. Not to be changed."""
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from serving import three_versions

    folder = tmp_path_factory.mktemp("served") / "support"
    three_versions(folder)
    return folder


@pytest.fixture
def support(three: Path, tmp_path: Path) -> Path:
    """A copy of `three` to do anything with."""
    return shutil.copytree(three, tmp_path / "support")
