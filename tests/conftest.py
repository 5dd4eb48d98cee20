"""What all tests share."""

import os
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
