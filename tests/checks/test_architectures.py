"""Methods on tiny models of twenty architectures: what docs/architectures.md says holds."""

from pathlib import Path

import pytest
import torch
from slow_subset import only

from contune.checks.architectures import cells
from contune.checks.architectures.cells import tried
from contune.checks.architectures.models import ARCHITECTURES
from contune.checks.setting import settings
from contune.method.catalog import build_method, recipes

BY_DEFAULT = [("lora", "phi3"), ("lift", "mixtral"), ("osf", "t5"), ("progressive-prompts", "mistral")]
SMALL = {"lift": {"rank": 4, "filter_rank": 4}, "sapt": {"attempts": 8}}
WRITING = [name for name in recipes() if settings()["answers"].refusal(build_method(name, {})) is None]
ALL = [(method, architecture) for method in WRITING for architecture in ARCHITECTURES]


@pytest.mark.parametrize(("method", "architecture"), only(BY_DEFAULT, ALL))
def test_a_method_works_or_is_refused_in_a_sentence(method: str, architecture: str) -> None:
    found = tried(architecture, method, **SMALL.get(method, {}))
    assert found.verdict != "FAIL", found.words
    if (method, architecture) in BY_DEFAULT:
        assert found.verdict == "pass", found.words


def test_wrong_nats_and_tracebacks_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted faults: a stock model that says something else, and a library that throws."""
    right = cells.stock_nats
    monkeypatch.setattr(cells, "stock_nats", lambda *given: right(*given) + 0.05)
    assert "nats a token more or less in peft" in tried("llama", "lora").words

    def thrown(*given: object) -> float:
        raise RuntimeError("from deep inside")

    monkeypatch.setattr(cells, "stock_nats", thrown)
    assert tried("llama", "lora") == cells.Cell("FAIL", "RuntimeError: from deep inside")


def test_architectures_differ_and_are_made_the_same_again(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    first, again = (cells.save_architecture("mixtral", tmp_path / name) for name in "ab")
    one, two = (load_file(folder / "model.safetensors") for folder in (first, again))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert len(ARCHITECTURES) == len(set(ARCHITECTURES)) == 20
