"""The site: what its pages say is true of the sources, and a broken page does not pass its build."""

import ast
import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from contune.method.catalog import recipes

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = ("results.md", "text-results.md", "language-results.md")


def module(name: str) -> ModuleType:
    """A script of the documentation."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_every_method_has_a_page_with_its_card_and_its_recipe() -> None:
    pages = module("site_pages").made_pages()
    own = [name for name, recipe in recipes().items() if recipe.__module__.startswith("contune.")]
    titles = {text.splitlines()[0].removeprefix("# "): text for name, text in pages.items() if "methods/" in name}
    assert sorted(titles) == sorted(own)
    for name, text in titles.items():
        assert "## The recipe" in text
        assert "-> Method:" in text
        assert f'method="{name}"' in text
    assert "Memory:" in titles["ranpac"]
    assert '"""' not in titles["ranpac"]


def test_the_reference_has_every_public_module() -> None:
    pages = module("site_pages").made_pages()
    text = "\n".join(text for name, text in pages.items() if name.startswith("reference/"))
    for file in (ROOT / "src" / "contune").rglob("*.py"):
        if not file.name.startswith("_"):
            dotted = ".".join(file.relative_to(ROOT / "src").with_suffix("").parts)
            assert f"::: {dotted}\n" in text


def test_links_become_links_of_the_site() -> None:
    links = module("site_pages").site_links
    assert links("[a](docs/speed.md) [b](CONTRIBUTING.md)", "index.md") == "[a](speed.md) [b](contributing.md)"
    assert links("[a](../CONTRIBUTING.md)", "architecture.md") == "[a](contributing.md)"
    assert links("[a](methods.md#slca-1)", "faq.md") == "[a](methods/slca-plus-plus.md)"
    assert links("[a](methods.md#der)", "faq.md") == "[a](methods/der-plus-plus.md)"
    assert links("[a](methods.md#the-grid)", "faq.md") == "[a](methods.md#the-grid)"


def test_doctests_and_columns_of_the_reference_are_code() -> None:
    fenced = module("doctest_blocks").fenced
    assert fenced("R[i][j].\n\n>>> 1\n1\n\nMore.") == "R[i]\\[j].\n\n```pycon\n>>> 1\n1\n```\n\nMore."
    assert fenced("Sum:\n>>> 1\n1") == "Sum:\n\n```pycon\n>>> 1\n1\n```"
    assert fenced("x    one\ny    two") == "```text\nx    one\ny    two\n```"
    assert fenced("    x    one") == "    x    one"


BROKEN = {
    "nothing": ("", 0, ""),
    "a link to no page": ("[x](nowhere.md)", 1, "nowhere.md"),
    "a link to no heading": ("[x](other.md#nowhere)", 1, "nowhere"),
    "a link from the root": ("[x](/other.md)", 1, "absolute link"),
    "an image that is not there": ("![x](nowhere.png)", 1, "nowhere.png"),
}


def build(folder: Path, pages: dict[str, str], nav: list[str]) -> subprocess.CompletedProcess[str]:
    """A site of these pages under this project's own settings; the pages that are made are left out."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    (folder / "docs").mkdir()
    for name, text in pages.items():
        (folder / "docs" / name).write_text(text)
    config = {"INHERIT": str(ROOT / "mkdocs.yml"), "nav": nav, "hooks": [], "plugins": ["search"], "extra_css": []}
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(config))
    words = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(("text", "code", "named"), BROKEN.values(), ids=BROKEN)
def test_a_planted_broken_link_fails_the_build(text: str, code: int, named: str, tmp_path: Path) -> None:
    done = build(tmp_path, {"index.md": f"# Start\n\n{text}\n", "other.md": "# Other\n"}, ["index.md", "other.md"])
    assert done.returncode == code, done.stderr
    assert named in done.stderr


def test_a_page_outside_the_navigation_fails_the_build(tmp_path: Path) -> None:
    done = build(tmp_path, {"index.md": "# Start\n", "lost.md": "# Lost\n"}, ["index.md"])
    assert done.returncode == 1
    assert "lost.md" in done.stderr
    (tmp_path / "second").mkdir()
    done = build(tmp_path / "second", {"index.md": "# Start\n"}, ["index.md", "missing.md"])
    assert done.returncode == 1
    assert "missing.md" in done.stderr


def test_the_table_of_figures_is_up_to_date() -> None:
    page, make = (DOCS / "which-method.md").read_text(), runpy.run_path(str(DOCS / "make_choice.py"))["page"]
    assert make(page) == page
    assert "| 93.3 (2.4) | 51.4 (12.9) | 73.2 (8.8) |" in page
    assert make(page.replace("93.3 (2.4)", "99.9 (0.0)")) == page


def unknown_figures(page: str, sources: str) -> set[str]:
    """Figures with a decimal in a page that are in none of the pages of results."""
    return set(re.findall(r"\b\d+\.\d\b", page)) - set(re.findall(r"\b\d+\.\d\b", sources))


def test_every_figure_of_the_choice_is_one_of_the_results() -> None:
    sources = "".join((DOCS / name).read_text() for name in RESULTS)
    page = (DOCS / "which-method.md").read_text()
    assert unknown_figures(page, sources) == set()
    assert unknown_figures(page.replace("93.3", "98.7"), sources) == {"98.7"}


def told_errors() -> str:
    """The texts of the sources, those with values in them as `…` where a value comes."""
    found = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def untrue_headings(page: str, errors: str) -> list[str]:
    """Error messages in the headings of a page, of which a piece between two `…` is no text of the sources."""
    headings = re.findall(r"^### `(.+)`$", page, flags=re.MULTILINE)
    assert headings
    return [
        heading
        for heading in headings
        if not all(piece.strip() in errors for piece in heading.split("…") if piece.strip())
    ]


def test_every_error_that_is_explained_exists() -> None:
    page, errors = (DOCS / "faq.md").read_text(), told_errors()
    assert untrue_headings(page, errors) == []
    assert untrue_headings("### `this is … no error of ours`\n", errors) == ["this is … no error of ours"]


def test_hosted_checks_run_what_every_change_must_pass() -> None:
    workflow: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = {name: [step.get("run", "") for step in job["steps"]] for name, job in workflow["jobs"].items()}
    assert ".ci/run" in steps["checks"]
    assert any(run.endswith("pytest -m slow") for run in steps["slow"])
    script = (ROOT / ".ci" / "run").read_text()
    for tool in ("pytest", "ruff check .", "ruff format --check .", "mypy", "lint-imports", "mkdocs build --strict"):
        assert tool in script
