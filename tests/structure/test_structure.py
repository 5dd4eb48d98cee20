"""The shape of the sources: sizes, circles, and what knows a concrete case. Each law is seen to catch a planted fault."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from source_rules import circle, full_folders, long_files, long_functions, special_cases

from contune.method.catalog import CATEGORIES, parts

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "contune"
GENERAL = ("engine", "contract", "run", "method")  # rooms that shall not know which parts, kinds and inputs there are

# Lines there that know one all the same. The goal is 5, each with its reason; the number only goes down.
MOST_SPECIAL_CASES = 5
# Functions longer than 40 lines today, and how long they may be; an entry goes when its function is short.
LONG_FUNCTIONS: dict[str, int] = {}


def part_names() -> set[str]:
    return {name for category in CATEGORIES for name in parts(category)}


def test_folders_and_files_are_small() -> None:
    assert full_folders(SOURCES) == {}
    assert long_files(SOURCES) == {}


def test_functions_are_short() -> None:
    found = long_functions(SOURCES)
    assert {name: lines for name, lines in found.items() if lines > LONG_FUNCTIONS.get(name, 40)} == {}


def test_no_files_import_each_other() -> None:
    assert circle(SOURCES) == []


def test_general_rooms_know_few_special_cases() -> None:
    found = special_cases(SOURCES, GENERAL, part_names())
    assert len(found) <= MOST_SPECIAL_CASES, "\n".join(found)


def test_options_of_the_command_line_are_in_one_room() -> None:
    pattern = re.compile(r"^\s*(?:import|from) (?:typer|argparse|click)\b", re.MULTILINE)
    users = {file.relative_to(SOURCES).parts[0] for file in SOURCES.rglob("*.py") if pattern.search(file.read_text())}
    assert users == {"cli"}


def write(folder: Path, **files: str) -> Path:
    """A package of sources; `__` in a name stands for a folder."""
    for name, text in files.items():
        file = folder / (name.replace("__", "/") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_planted_sizes_are_found(tmp_path: Path) -> None:
    body = "".join(f"    x = {i}\n" for i in range(41))
    card = '    """' + "A long card.\n" * 60 + '    """\n'
    package = write(
        tmp_path / "contune",
        long="x = 1\n" * 401,
        right="x = 1\n" * 400,
        functions=f"def long():\n{body}\n\ndef right():\n{card}    return 1\n",
        **{f"full__file{i}": "" for i in range(13)},
    )
    assert long_files(package) == {"long.py": 401}
    assert long_functions(package) == {"functions.py:long": 41}
    assert full_folders(package) == {"full": 13}
    (package / "full" / "file0.py").rename(package / "full" / "__init__.py")
    assert full_folders(package) == {}


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    lazy = "def f():\n    from contune.a import g\n"
    package = write(tmp_path / "contune", a="from contune import b\n", b="from contune.c import f\n", c=lazy)
    assert set(circle(package)) == {"contune.a", "contune.b", "contune.c"}
    write(package, c="if TYPE_CHECKING:\n    from contune.a import g\n")
    assert circle(package) == []


CASES = {
    "isinstance of a part": "from contune.head.linear import Linear\nisinstance(x, Linear)\n",
    "one of several classes": "from contune.rule.er import ER\nissubclass(x, int | ER)\n",
    "kind": "stream.kind == 'domain-incremental'\n",
    "kind in a record": "if run['kind'] in ('blurry', 'online'): ...\n",
    "modality": "modality != 'image'\n",
    "a part's name": "adapter.name == 'lora'\n",
    "the word in a name": "x = self.for_language\n",
    "the word as a key": "x['language'] = 1\n",
}
NONE = {
    "isinstance of a plain class": "isinstance(x, int)\n",
    "a docstring": '"""language, kind == "image" """\n',
    "a comment": "x = 1  # language\n",
    "two of one kind": "task.modality == backbone.modality\n",
    "another name": "adapter.name == 'mine'\n",
}


@pytest.mark.parametrize("text", CASES.values(), ids=CASES)
def test_a_planted_special_case_is_found(text: str, tmp_path: Path) -> None:
    package = write(tmp_path / "contune", engine__loop=text, head__linear=text)
    line = len(text.splitlines())
    assert special_cases(package, GENERAL, {"lora"}) == [f"engine/loop.py:{line}"]


@pytest.mark.parametrize("text", NONE.values(), ids=NONE)
def test_what_is_no_special_case_is_let_through(text: str, tmp_path: Path) -> None:
    assert special_cases(write(tmp_path / "contune", engine__loop=text), GENERAL, {"lora"}) == []


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The checker of imports on `folder/contune`, with the laws of this project's pyproject.toml."""
    pytest.importorskip("importlinter")
    code = "import sys; sys.path.insert(0, sys.argv.pop()); from importlinter.cli import lint_imports_command as run; run()"
    words = [str(ROOT / "pyproject.toml"), "--no-cache", "--no-logo", str(folder)]
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def test_imports_run_one_way() -> None:
    done = lint_imports(ROOT / "src")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "law"),
    [
        (
            "stream/order.py",
            "from contune.engine.steps.loop import fit",
            "contune.stream is not allowed to import contune.engine",
        ),
        (
            "rule/refusals.py",
            "from contune.head.linear import Linear",
            "contune.rule is not allowed to import contune.head",
        ),
        ("run/new.py", "from contune.cli.run import show", "contune.run is not allowed to import contune.cli"),
        ("metric/text.py", "import contune.stream.task", "contune.metric is not allowed to import contune.stream"),
        ("stray.py", "x = 1", "contune.stray"),
        ("head/linear.py", "import contune.head.self_refined", "No cycles are allowed in contune.head"),
    ],
    ids=lambda value: value if value.endswith(".py") else "",
)
def test_a_planted_import_is_found(file: str, line: str, law: str, tmp_path: Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "contune", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "contune" / file).open("a") as text:
        text.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert law in " ".join(done.stdout.split())
