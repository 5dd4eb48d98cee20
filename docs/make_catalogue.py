"""Write docs/methods.md from the recipes' own docstrings and signatures: python docs/make_catalogue.py."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contune.errors import ConfigError
from contune.method.card import card_of
from contune.method.catalog import CATEGORIES, Recipe, build_objective, compose, parts, recipes
from contune.method.options import Option, options_of, shown_value


def catalogue() -> str:
    """The page as Markdown."""
    lines = ["# Methods", "", "Made by `python docs/make_catalogue.py` from the recipes themselves.", ""]
    for name, recipe in recipes().items():
        lines += [f"## {name}", "", *method_lines(recipe)]
    lines += ["# Parts for free composition", ""]
    for category in CATEGORIES:
        known = parts(category)
        lines += [f"## {category}", "", "| name | what it is |", "|---|---|"]
        lines += [f"| `{name}` | {card_of(part).idea} |" for name, part in known.items()]
        lines += [
            "",
            "| part | option | default | what it is | where the default comes from |",
            "|---|---|---|---|---|",
        ]
        lines += [f"| `{name}` {row(option)}" for name, part in known.items() for option in options_of(part).values()]
        lines.append("")
    return "\n".join([*lines, *grid()])


def method_lines(recipe: Recipe) -> list[str]:
    """One method: idea, cost, differences from the paper, options."""
    card = card_of(recipe)
    title = (inspect.getdoc(inspect.getmodule(recipe)) or "").split("\n")[0]
    paragraphs = filter(None, [f"*{title}*", card.idea, card.more, card.use])
    facts = [("Memory", card.memory), ("Compute", card.compute), ("Defaults", card.defaults)]
    lines = [line for paragraph in paragraphs for line in (paragraph, "")]
    lines += [f"- {label}: {text}." for label, text in facts if text]
    if card.differs:
        lines += ["- Differs:", *(f"    - {point}" for point in card.differs)]
    return [*lines, "", *option_table(recipe), in_language(recipe), ""]


def option_table(make: Callable[..., Any]) -> list[str]:
    """The options of a recipe, one a row."""
    options = options_of(make)
    if not options:
        return ["It has no options.", ""]
    head = ["| option | default | what it is | where the default comes from |", "|---|---|---|---|"]
    return [*head, *(row(option) for option in options.values()), ""]


def row(option: Option) -> str:
    """One option in a table."""
    return f"| `{option.name}` | `{shown_value(option.default)}` | {option.meaning} | {option.source} |"


def in_language(recipe: Recipe) -> str:
    """Whether the recipe learns language streams, or why not."""
    try:
        recipe().for_objective(build_objective("write"))
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
        reason = str(refusal).replace(repr(row), f"this {rows}").replace(repr(column), f"this {columns}")
        reason = reason.replace(f"{rows} this {rows}", f"this {rows}").replace(
            f"{columns} this {columns}", f"this {columns}"
        )
        if reason not in reasons:
            reasons.append(reason)
        return str(reasons.index(reason) + 1)
    return "yes"


if __name__ == "__main__":
    Path(__file__).with_name("methods.md").write_text(catalogue())
