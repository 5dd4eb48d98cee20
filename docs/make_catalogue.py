"""Write docs/methods.md from the recipes' own docstrings and signatures: python docs/make_catalogue.py."""

import inspect
from pathlib import Path

from contune.method.catalog import ROOMS, first_sentence, option_defaults, parts, recipes


def catalogue() -> str:
    """The page as Markdown."""
    lines = ["# Methods", "", "Made by `python docs/make_catalogue.py` from the recipes themselves.", ""]
    for name, recipe in recipes().items():
        title = (inspect.getdoc(inspect.getmodule(recipe)) or "").split("\n")[0]
        options = ", ".join(f"`{key}={value}`" for key, value in option_defaults(recipe).items()) or "none"
        text = (inspect.getdoc(recipe) or "").split(">>>")[0].strip()
        lines += [f"## {name}", "", f"*{title}*", "", text, "", f"Options: {options}", ""]
    lines += ["# Parts for free composition", ""]
    for room in ROOMS:
        lines += [f"## {room}", "", "| name | what it is |", "|---|---|"]
        lines += [f"| `{name}` | {first_sentence(part)} |" for name, part in parts(room).items()] + [""]
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("methods.md").write_text(catalogue())
