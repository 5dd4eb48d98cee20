"""Write docs/methods.md from the recipes' own docstrings and signatures: python docs/make_catalogue.py."""

import inspect
from pathlib import Path

from contune.errors import ConfigError
from contune.method.catalog import CATEGORIES, Recipe, compose, first_sentence, option_defaults, parts, recipes


def catalogue() -> str:
    """The page as Markdown."""
    lines = ["# Methods", "", "Made by `python docs/make_catalogue.py` from the recipes themselves.", ""]
    for name, recipe in recipes().items():
        title = (inspect.getdoc(inspect.getmodule(recipe)) or "").split("\n")[0]
        options = ", ".join(f"`{key}={value}`" for key, value in option_defaults(recipe).items()) or "none"
        text = (inspect.getdoc(recipe) or "").split(">>>")[0].strip()
        lines += [f"## {name}", "", f"*{title}*", "", text, "", f"Options: {options}", "", in_language(recipe), ""]
    lines += ["# Parts for free composition", ""]
    for room in CATEGORIES:
        lines += [f"## {room}", "", "| name | what it is |", "|---|---|"]
        lines += [f"| `{name}` | {first_sentence(part)} |" for name, part in parts(room).items()] + [""]
    return "\n".join([*lines, *grid()])


def in_language(recipe: Recipe) -> str:
    """Whether the recipe learns language streams, or why not."""
    try:
        recipe().for_language()
    except ConfigError as refusal:
        return f"In language streams: no; {refusal}."
    return "In language streams: yes, with the model's own language head."


def grid() -> list[str]:
    """Which parts go together: tables of pairs, with the reason of every refusal below them."""
    reasons: list[str] = []
    lines = ["# The grid", "", "What can be composed; a number stands for the reason of the refusal below.", ""]
    for rows, columns in (("adapter", "head"), ("adapter", "rule"), ("head", "rule"), ("adapter", "router")):
        names = list(parts(columns))
        lines += [f"## {rows} x {columns}", "", f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        for row in parts(rows):
            cells = [cell(rows, row, columns, name, reasons) for name in names]
            lines.append(f"| `{row}` | {' | '.join(cells)} |")
        lines.append("")
    return [*lines, *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)), ""]


def cell(rows: str, row: str, columns: str, column: str, reasons: list[str]) -> str:
    """`yes`, `with a router`, or the number of the reason why not."""
    plain = {"adapter": "lora", "head": "linear"}
    chosen = {**plain, rows: row, columns: column}
    config = {key: value for key, value in chosen.items() if key != "rule"}
    if columns == "rule":
        config["rules"] = [column]
    try:
        compose(config)
    except ConfigError as refusal:
        if "add a router" in str(refusal):
            return "with a router"
        # What to take instead differs from row to row, and the table says it anyway.
        reason = (
            str(refusal).split("; set ")[0].replace(repr(row), f"this {rows}").replace(repr(column), f"this {columns}")
        )
        reason = reason.replace(f"{rows} this {rows}", f"this {rows}").replace(
            f"{columns} this {columns}", f"this {columns}"
        )
        if reason not in reasons:
            reasons.append(reason)
        return str(reasons.index(reason) + 1)
    return "yes"


if __name__ == "__main__":
    Path(__file__).with_name("methods.md").write_text(catalogue())
