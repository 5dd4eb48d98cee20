"""Features that are kept on disk are used only where they are whole; none that are not finite are used at all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny
from torch import Tensor

from contune.backbone.config import ModelConfig
from contune.checks.sizes import checked_method
from contune.contract.settings import CacheSettings
from contune.engine.kept.folder import CacheFolder, Unfit, made_by
from contune.engine.learner import Learner
from contune.errors import ConfigError, NumericError
from contune.stream.task import Examples, Task


def task() -> Task:
    texts = [f"{letter * 4} {number}" for letter in "ABCD" for number in range(6)]
    examples = Examples(texts, np.repeat(np.arange(4), 6), np.arange(24), "text")
    return Task("t", tuple("abcd"), examples, examples)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("bert", tmp_path_factory.mktemp("model"))


def sums(model: Path, cache: Path | None, memory_mb: int = 64) -> Tensor:
    kept = CacheSettings(folder=None if cache is None else str(cache), memory_mb=memory_mb, batch_size=4)
    learner = Learner(ModelConfig(path=str(model)), "nmc", cache=kept)
    learner.learn(task())
    return learner.state().tensors["head/sums"]


def turned(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-2] ^= 0x7F
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def cut_in_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def reshaped(file: Path) -> None:
    CacheFolder(file.parent).write(file.stem, torch.zeros(1, 32))


def halved(file: Path) -> None:
    save_file({"result": load_file(file)["result"].half().clone()}, file, {"made_by": made_by(), "sha256": "0"})


def aged(file: Path) -> None:
    values = load_file(file)["result"].clone()
    save_file({"result": values + 1}, file)  # whole, but nobody says by what it was made


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (turned, "its checksum is wrong"),
    (cut, "its checksum is wrong"),
    (cut_in_header, "cut short"),
    (emptied, "cut short"),
    (reshaped, "has shape"),
    (halved, "made by"),
    (aged, "another version"),
]


@pytest.mark.parametrize("memory_mb", [64, 0], ids=["in memory too", "on disk alone"])
@pytest.mark.parametrize(("damage", "word"), DAMAGES)
def test_what_is_damaged_is_computed_again_and_said(
    damage: Callable[[Path], None], word: str, memory_mb: int, folder: Path, tmp_path: Path
) -> None:
    true = sums(folder, None)
    assert torch.equal(sums(folder, tmp_path, memory_mb), true)
    files = sorted(tmp_path.glob("*.safetensors"))
    before = {file: load_file(file)["result"].clone() for file in files}
    damage(files[0])
    with pytest.warns(UserWarning, match=f"1 of 4 kept results in .* are computed again .*{word}"):
        assert torch.equal(sums(folder, tmp_path, memory_mb), true)
    assert all(torch.equal(load_file(file)["result"], values) for file, values in before.items())


def test_whole_files_are_used(folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    true = sums(folder, tmp_path)
    kept = CacheFolder(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        kept.write(file.stem, load_file(file)["result"] + 1)
    assert not torch.equal(sums(folder, tmp_path), true)
    assert not [warning for warning in recwarn if "computed again" in str(warning.message)]


def test_a_file_is_read_for_its_checksum_again_when_it_has_changed(tmp_path: Path) -> None:
    kept = CacheFolder(tmp_path)
    kept.write("a", torch.ones(2, 3))
    assert kept.read("a", (2, 3)) is not None
    assert kept.read("b", (2, 3)) is None
    turned(kept.path("a"))
    with pytest.raises(Unfit, match="checksum"):
        kept.read("a", (2, 3))


@pytest.mark.parametrize("method", ["nmc", "acil", "dkvb", "ranpac", "lora", "l2p"])
def test_features_that_are_not_finite_are_an_error_in_every_method(method: str, folder: Path) -> None:
    learner = Learner(ModelConfig(path=str(folder)), checked_method(method), train={"epochs": 1, "min_steps": 0})
    with torch.no_grad():
        learner.backbone.model.get_parameter("encoder.layer.0.output.dense.weight")[0, 0] = float("nan")
    with pytest.raises(NumericError, match=r"not finite|the loss is nan"):
        learner.learn(task())


def test_weights_that_are_not_finite_are_refused_at_load(folder: Path, tmp_path: Path) -> None:
    broken = save_tiny("bert", tmp_path)
    weights = load_file(broken / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"not finite.*encoder\.layer\.0\.output\.dense\.weight"):
        Learner(ModelConfig(path=str(broken)), "nmc")
