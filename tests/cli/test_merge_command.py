"""`contune merge`: options reach the functions, options without effect are refused, and the guide's commands run."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from merge_adapters import adapter, on
from merge_models import bert, gpt2, llama, loaded, logits, saved, state, trio, tuned
from typer.testing import CliRunner

from contune.cli.merge import USES, merge
from contune.errors import ConfigError, ContuneError, DataError, RunDirectoryError
from contune.merge import Recipe, load_smile, merge_adapters, merge_checkpoints

assert trio  # a fixture
GUIDE = Path(__file__).parents[2] / "docs" / "merging.md"


def run(*words: str | Path) -> Any:
    """The command by itself; errors of contune come out as they are."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(merge)
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, ContuneError):
        raise result.exception
    return result


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base and two adapters."""
    base = saved(llama(0), tmp_path / "base")
    return base, *(adapter(base, tmp_path / str(i), ["q_proj", "up_proj"], seed=i) for i in range(2))


def test_options_reach_full_models(trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, first, second = trio
    out = tmp_path / "out"
    words = "--method ties --keep 0.3 --dare 0.9 --seed 4 --scale 0.5 --weight 1 --weight 2 --lines-alpha 0.25"
    result = run(first, second, "--out", out, "--base", base, "--leave", "*.ln_f.*", *words.split())
    assert result.exit_code == 0
    assert result.stdout.strip() == str(out)
    recipe = Recipe(method="ties", keep=0.3, dare=0.9, seed=4, scale=0.5, weights=(1.0, 2.0), lines=(0.25, 0.75))
    merge_checkpoints([first, second], tmp_path / "same", recipe, base=base, leave=["*.ln_f.*"])
    one, other = state(out), state(tmp_path / "same")
    assert all(torch.equal(one[name], other[name]) for name in other)
    run(
        first,
        second,
        "--out",
        tmp_path / "seed",
        "--base",
        base,
        "--leave",
        "*.ln_f.*",
        *words.replace("4", "5").split(),
    )
    assert any(not torch.equal(value, one[name]) for name, value in state(tmp_path / "seed").items())


def test_options_reach_adapters(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, first, second = pair
    result = run(first, second, "--out", tmp_path / "out", "--method", "task-arithmetic", "--rank", "2", "--json")
    record = json.loads(result.stdout)
    assert record["rank"] == 2
    assert record["kept"]["share"] < 0.999
    merge_adapters([first, second], tmp_path / "same", Recipe(method="task-arithmetic"), rank=2)
    assert torch.equal(logits(on(base, tmp_path / "out")), logits(on(base, tmp_path / "same")))
    noted = run(first, second, "--out", tmp_path / "noted", "--rank", "1")
    assert "note: the rank keeps" in noted.stderr
    assert "--rank full keeps all" in noted.stderr


def test_smile_transfer_and_graft(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, first, second = pair
    run(first, second, "--out", tmp_path / "mix", "--method", "smile", "--base", base, "--top", "2", "--rank", "full")
    assert json.loads((tmp_path / "mix" / "smile.json").read_text())["top"] == 2
    assert not torch.equal(logits(load_smile(tmp_path / "mix")), logits(loaded(base)))
    run(first, "--out", tmp_path / "moved", "--method", "transfer", "--onto", base)
    assert torch.allclose(logits(on(base, tmp_path / "moved")), logits(on(base, first)), atol=1e-5)
    new = saved(tuned(llama(0), 1), tmp_path / "new")
    run(new, "--out", tmp_path / "same", "--method", "transfer", "--base", base, "--onto", base)
    assert torch.equal(logits(loaded(tmp_path / "same")), logits(loaded(new)))
    run(new, "--out", tmp_path / "graft", "--method", "graft", "--base", base, "--share", "1.0")
    assert torch.equal(logits(loaded(tmp_path / "graft")), logits(loaded(new)))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--share 0.1", "--share does nothing with --method linear; it is for graft"),
        ("--keep 0.1", "--keep does nothing with --method linear; it is for ties"),
        ("--method tie", "did you mean 'ties'"),
        ("--method dare-ties", "DARE is --dare"),
        ("--seed 1", "--seed does nothing without --dare"),
        ("--lines-beta 1", "--lines-beta needs --lines-alpha"),
        ("--rank 2", "--rank does nothing with full models"),
        ("--rank zero", "give a number of at least 1, or full"),
        ("--method smile", "--method smile needs --base"),
        ("--method transfer", "2 models were given; --method transfer takes one"),
        ("--method ties", "give --base"),
        ("--leave head*", r"--leave 'head\*' matches no tensor"),
        ("--weight 1", "1 weights for 2 models"),
        ("--weight 1 --weight -1", "sum to 0.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    trio: tuple[Path, Path, Path], tmp_path: Path, words: str, says: str
) -> None:
    models = trio[1:]
    if words == "--rank zero":
        models = tuple(adapter(trio[0], tmp_path / f"a{i}", ["c_attn"], seed=i) for i in range(2))
    with pytest.raises(ConfigError, match=says):
        run(*models, "--out", tmp_path / "out", *words.split())
    assert not (tmp_path / "out").exists()


def test_bad_models_are_refused(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, first, _ = pair
    with pytest.raises(ConfigError, match="is an adapter and others are full models"):
        run(first, base, "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="grafts choose single weights"):
        run(first, "--out", tmp_path / "out", "--method", "graft", "--base", base, "--share", "0.1")
    with pytest.raises(DataError, match="is not a folder"):
        run(tmp_path / "nothing", "--out", tmp_path / "out")
    with pytest.raises(RunDirectoryError, match="never overwritten"):
        run(first, "--out", base)
    other = saved(gpt2(0), tmp_path / "gpt2")
    with pytest.raises(DataError, match=r"gpt2 has no tensor for model.layers.0"):
        run(first, "--out", tmp_path / "out", "--base", other)


def test_importing_the_command_loads_no_torch() -> None:
    code = "import sys, contune.cli.merge, contune.merge; sys.exit(any(m in sys.modules for m in ('torch', 'peft')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def commands() -> list[list[str]]:
    """The `contune merge` lines of the guide, with continued lines joined."""
    text = GUIDE.read_text().replace("\\\n", " ")
    return [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("contune merge ")]


def test_the_guide_shows_every_method_and_its_commands_run(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    base = saved(bert(0), Path("base"))
    saved(tuned(bert(0), 9, 0.01), Path("new-base"))
    for number, name in enumerate(("mails", "tickets")):
        adapter(base, Path(name), ["query", "dense"], seed=number)
        saved(tuned(bert(0), number), Path(f"{name}-full"))
    given = commands()
    for words in given:
        result = run(*words)
        assert result.exit_code == 0, (words, result.output)
        assert Path(words[words.index("--out") + 1]).is_dir()
        shutil.rmtree(words[words.index("--out") + 1])
    shown = {words[words.index("--method") + 1] if "--method" in words else "linear" for words in given}
    assert shown == set(USES)
