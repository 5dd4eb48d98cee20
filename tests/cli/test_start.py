"""The command line starts at once, lists its commands, and turns errors into a sentence and an exit code."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from contune.cli import app, main

HEAVY = ("torch", "transformers", "peft", "numpy", "pandas", "pyarrow", "datasets", "pydantic")
COMMANDS = ["run", "resume", "report", "compare", "predict", "export", "merge"]
COMMANDS += ["list", "show", "schema", "explain", "check", "new"]
COMMANDS += [
    "create",
    "update",
    "gate",
    "promote",
    "rollback",
    "history",
    "diff",
    "forget",
    "watch",
    "verify",
    "gc",
    "serve",
]


def seconds_and_heavy(code: str) -> tuple[float, set[str]]:
    """Processor seconds that `code` takes in a new interpreter, and which heavy packages it has imported."""
    tail = f"print('@', time.process_time(), *(m for m in {HEAVY} if m in sys.modules))"
    script = f"import sys, time\ntry:\n    {code}\nexcept SystemExit:\n    pass\n{tail}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    _, seconds, *heavy = done.stdout.splitlines()[-1].split()
    return float(seconds), set(heavy)


def test_the_package_is_imported_in_half_a_second() -> None:
    seconds, heavy = seconds_and_heavy("import contune")
    assert seconds < 0.5
    assert heavy == set()


@pytest.mark.parametrize("words", [["--help"], ["merge", "--help"], ["run", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    seconds, heavy = seconds_and_heavy(f"import contune.cli; contune.cli.app({words})")
    assert seconds < 2
    assert heavy <= {"pydantic"}  # which typer itself reads options with


def test_a_heavy_import_is_seen() -> None:
    assert seconds_and_heavy("import contune; contune.Learner")[1] >= {"torch", "numpy"}


def test_help_lists_every_command_and_the_exit_codes() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert [line.split()[1] for line in text.splitlines() if line.startswith("│ ") and line[2].isalpha()] == COMMANDS
    assert "Exit codes: 0 well, 1 failed, 2 configuration, 3 data" in text


def test_errors_end_in_one_sentence_and_their_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["contune", "run", "no-such-configuration"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("contune: ")
