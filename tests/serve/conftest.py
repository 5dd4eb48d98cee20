"""A living model of three versions, made once, and copies of it."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; version 1 answers. Not to be changed."""
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from serving import three_versions

    folder = tmp_path_factory.mktemp("served") / "support"
    three_versions(folder)
    return folder


@pytest.fixture
def support(three: Path, tmp_path: Path) -> Path:
    """A copy to do anything with."""
    return shutil.copytree(three, tmp_path / "support")
