"""Pages of the site that are made when it is built: the start page, one page a method, and the reference.

A hook of mkdocs. Nothing of contune is imported: methods come from methods.md, which `make_catalogue.py` writes from the
recipes' docstrings and a test keeps up to date, and the reference is read off the sources.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "contune"
FROM_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
FAMILIES = {
    "align": "classifier alignment",
    "anchor": "penalties and distillation",
    "average": "averages of weights",
    "baseline": "baselines",
    "bottleneck": "bottleneck adapters",
    "closed_form": "closed form",
    "lora": "LoRA",
    "mask": "masks of the step",
    "project": "projections of the step",
    "prompt": "prompts",
    "replay": "rehearsal",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages that are made to the navigation."""
    for entry in config.nav or []:
        for title, pages in entry.items():
            if title == "Methods":
                pages += method_navigation()
            if title == "Reference":
                pages += [{name: f"reference/{name}.md"} for name in packages()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for name, text in made_pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:  # noqa: ARG001  as mkdocs calls it
    """Links as they are on the site; methods.md becomes the list of methods, each with a page of its own."""
    if page.file.src_uri == "methods.md":
        markdown = overview(markdown)
    return site_links(markdown, page.file.src_uri)


def made_pages() -> dict[str, str]:
    """Every page that is no file in docs, by its name."""
    pages = {to: (ROOT / name).read_text() for name, to in FROM_ROOT.items()}
    found = recipe_files()
    for name, section in method_sections((ROOT / "docs" / "methods.md").read_text()).items():
        pages[method_page(found[name])] = method_text(name, section, found[name])
    pages["reference/index.md"] = reference_index()
    pages |= {f"reference/{name}.md": reference_text(name, modules) for name, modules in packages().items()}
    return pages


def method_sections(catalogue: str) -> dict[str, str]:
    """The section of every method in methods.md, by name; the parts below the methods are left out."""
    methods = catalogue.split("\n# ")[0]
    found = re.split(r"^## (.+)$", methods, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], (text.strip() for text in found[1::2]), strict=True))


def recipe_files() -> dict[str, Path]:
    """The file of every recipe by the method's name: a function that returns Method, and the file's NAME if it has one."""
    found = {}
    for file in sorted((SOURCES / "method").rglob("*.py")):
        tree = ast.parse(file.read_text())
        named = [ast.literal_eval(node.value) for node in tree.body if is_name(node)]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns) == "Method":
                found[named[0] if named else node.name.replace("_", "-")] = file
    return found


def is_name(node: ast.stmt) -> bool:
    """Whether a statement is `NAME = "..."`."""
    return isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["NAME"]


def method_page(file: Path) -> str:
    """Where the page of a recipe is."""
    return f"methods/{file.stem.replace('_', '-')}.md"


def method_navigation() -> list[dict[str, Any]]:
    """The pages of the methods, family by family."""
    families: dict[str, list[dict[str, str]]] = {}
    files = recipe_files()
    for name in method_sections((ROOT / "docs" / "methods.md").read_text()):
        families.setdefault(files[name].parent.name, []).append({name: method_page(files[name])})
    return [{capital(FAMILIES.get(family, family)): families[family]} for family in sorted(families)]


def capital(text: str) -> str:
    """The text with a large first letter."""
    return text[:1].upper() + text[1:]


def method_text(name: str, section: str, file: Path) -> str:
    """The page of one method: its card, how it is used, and the recipe."""
    title, _, rest = section.partition("\n")
    function = file.stem
    use = (
        f'```yaml\nmethod: {name}\n```\n\n```python\nlearner = contune.Learner("path/or/hub-id", method="{name}")\n```'
    )
    return "\n\n".join(
        [
            f"# {name}",
            title.strip(),
            rest.strip(),
            "## Use",
            use,
            "## The recipe",
            f"`contune.method.{file.parent.name}.{function}`, its docstring left out:",
            f"```python\n{without_docstrings(file.read_text())}\n```",
        ]
    )


def without_docstrings(source: str) -> str:
    """Python source without the docstrings of the file and of its functions."""
    tree, lines = ast.parse(source), source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            for number in range(first.lineno - 1, first.end_lineno or first.lineno):
                lines[number] = "\0"
    return re.sub(r"\n{3,}", "\n\n\n", "\n".join(line for line in lines if line != "\0")).strip()


def overview(catalogue: str) -> str:
    """The list of methods, and the parts and the grid below it as they are."""
    head, *parts = catalogue.split("\n# ")
    files, lines = recipe_files(), ["| method | idea | family |", "|---|---|---|"]
    for name, section in method_sections(head).items():
        page, idea = method_page(files[name]), section.partition("\n")[0].strip("*")
        idea = idea.partition(": ")[2] or idea
        lines.append(f"| [{name}]({page}) | {capital(idea)} | {FAMILIES.get(files[name].parent.name, '')} |")
    return "\n# ".join(["# Methods\n\n" + "\n".join(lines) + "\n", *parts])


def site_links(markdown: str, page: str) -> str:
    """Links to files of the repository as links to pages of the site."""
    up = "../" * page.count("/")
    if page in FROM_ROOT.values():
        markdown = re.sub(r"\]\(docs/", "](", markdown)
    for name, to in FROM_ROOT.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(name)}", f"]({up}{to}", markdown)
    anchors = method_anchors()
    return re.sub(
        r"\]\(methods\.md#([\w-]+)\)",
        lambda found: f"]({up}{anchors[found[1]]})" if found[1] in anchors else found[0],
        markdown,
    )


def method_anchors() -> dict[str, str]:
    """The page of every method by the anchor that its heading has in methods.md, a second one numbered."""
    anchors: dict[str, str] = {}
    files = recipe_files()
    for name in method_sections((ROOT / "docs" / "methods.md").read_text()):
        anchor = re.sub(r"[^\w-]", "", name)
        number = sum(other == anchor or other.startswith(f"{anchor}-1") for other in anchors)
        anchors[f"{anchor}-{number}" if number else anchor] = method_page(files[name])
    return anchors


def packages() -> Mapping[str, list[str]]:
    """Public modules by the package they lie in, both with dots."""
    found: dict[str, list[str]] = {}
    for file in sorted(SOURCES.rglob("*.py")):
        package = ".".join(("contune", *file.parent.relative_to(SOURCES).parts))
        if not file.name.startswith("_"):
            found.setdefault(package, []).append(f"{package}.{file.stem}")
    return dict(sorted(found.items()))


def reference_index() -> str:
    """The first page of the reference."""
    rows = []
    for name in packages():
        folder = SOURCES.joinpath(*name.split(".")[1:])
        told = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        rows.append(f"| [{name}]({name}.md) | {told.partition(chr(10))[0]} |")
    table = "\n".join(["| package | what it is |", "|---|---|", *rows])
    return f"# Reference\n\nRead off the sources when the site is built. What is public in Python:\n\n{PUBLIC}\n\n{table}\n"


PUBLIC = """::: contune.engine.learner.Learner

::: contune.stream.build.load_stream

::: contune.stream.config.StreamConfig

## Packages"""


def reference_text(package: str, modules: list[str]) -> str:
    """The page of one package, module after module."""
    return "\n\n".join([f"# {package}", *(f"::: {module}" for module in modules), ""])
