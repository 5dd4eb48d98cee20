"""What a method, a part or a key of the configuration is, for the terminal: meaning, options, cost and an example."""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from contune.errors import CombinationError, ConfigError, did_you_mean
from contune.method.card import Card, card_of
from contune.method.catalog import CATEGORIES, compose, parts, recipes
from contune.method.options import OURS, Option, options_of, shown_value
from contune.run.sections import allowed_values, keys_of, sections

PLAIN = {name: place for place, name in enumerate(("lora", "lora-per-task", "bottleneck-per-task", "none", "linear"))}
FACTS = ("memory", "compute", "defaults")


@final
@dataclass(frozen=True)
class Shown:
    """What `contune show` says about one name."""

    name: str
    title: str
    text: str
    facts: Mapping[str, str]
    options: tuple[tuple[str, str, str, str], ...]  # name, default, what may be given, what it is
    example: str


def shown(name: str) -> Shown:
    """What there is to say about a method, a part (`rule:ewc`, or its name alone) or a key (`train`, `train.lr`)."""
    category, _, part = name.partition(":")
    if category in CATEGORIES:
        if part not in parts(category):
            raise ConfigError(
                f"{category} {part!r} is unknown; {did_you_mean(part, parts(category))} (contune list parts)"
            )
        return of_part(category, part)
    if name in recipes():
        return of_method(name)
    homes = [category for category in CATEGORIES if name in parts(category)]
    if homes:
        return of_part(homes[0], name)
    if name in sections() and name:
        return of_section(name)
    home, _, key = name.rpartition(".")
    model = sections().get(home)
    if model is not None and key in model.model_fields:
        return of_key(home, key)
    raise ConfigError(f"nothing is called {name!r}; {did_you_mean(name, known_names())} (contune list methods, parts)")


def known_names() -> set[str]:
    """All that can be shown, methods and parts without their category."""
    keys = {f"{home}.{key}".lstrip(".") for home, model in sections().items() for key in model.model_fields}
    return keys | set(recipes()) | {part for category in CATEGORIES for part in parts(category)}


def of_method(name: str) -> Shown:
    """A recipe."""
    recipe = recipes()[name]
    title = (inspect.getdoc(inspect.getmodule(recipe)) or "").split("\n")[0]
    train = ", ".join(f"{key} {shown_value(value)}" for key, value in recipe().train.items())
    facts = {**facts_of(card_of(recipe)), **({"trained with": f"{train} (train: changes it)"} if train else {})}
    return Shown(
        f"method {name}",
        title,
        text_of(card_of(recipe)),
        facts,
        rows_of(recipe),
        flow({"method": {"name": name, **example_options(recipe)}}),
    )


def of_part(category: str, name: str) -> Shown:
    """A part, in a composition that makes sense."""
    part = parts(category)[name]
    composed = composition_with(category, name, example_options(part))
    homes = [other for other in CATEGORIES if other != category and name in parts(other)]
    also = [f"method {name}"] * (name in recipes()) + [f"{other}:{name}" for other in homes]
    facts = {**facts_of(card_of(part)), **({"see also": ", ".join(also)} if also else {})}
    card = card_of(part)
    return Shown(
        f"{category} {name}", card.idea, text_of(card, idea=False), facts, rows_of(part), flow({"method": composed})
    )


def composition_with(category: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A method from parts that holds this one with these options, with as plain a company as there is."""
    whole = {name: dict(options)} if options else name
    own = {"rules": [whole]} if category == "rule" else {category: whole}
    adapters, heads = (sorted(parts(each), key=lambda other: PLAIN.get(other, 99)) for each in ("adapter", "head"))
    for router in ({}, {"router": "centroids"}):
        for head in heads:
            for adapter in adapters:
                config = {"adapter": adapter, "head": head} | router | own
                try:
                    compose(config)
                except CombinationError:
                    continue
                return config
    raise ConfigError(f"{category} {name!r} goes together with no other part")


def of_section(name: str) -> Shown:
    """A section of the configuration with all its keys."""
    model = sections()[name]
    card = card_of(model)
    rows = tuple(
        (key, default_of(option), allowed_values(model.model_fields[key]), option.meaning)
        for key, option in keys_of(model).items()
    )
    return Shown(f"section {name}", card.idea, text_of(card, idea=False), {}, rows, "")


def of_key(home: str, key: str) -> Shown:
    """One key of a section."""
    model, name = sections()[home], f"{home}.{key}".lstrip(".")
    option = keys_of(model)[key]
    facts = {"give": allowed_values(model.model_fields[key]), "default": default_of(option) or "none, must be given"}
    return Shown(f"key {name}", sentence(option.meaning), "", facts, (), example_of_key(name, option))


def example_of_key(name: str, option: Option) -> str:
    """A line of YAML that sets a key, and the same on the command line; nothing where there is no plain value to show."""
    if option.default is PydanticUndefined or isinstance(option.default, BaseModel | dict) or option.default is None:
        return ""
    nested: Any = option.default
    for part in reversed(name.split(".")):
        nested = {part: nested}
    return f"{flow(nested)}    or    --set {name}={shown_value(option.default)}"


def example_options(make: Callable[..., Any]) -> dict[str, Any]:
    """The first two options that have a plain default, as an example of how they are written."""
    plain = [
        (name, option.default)
        for name, option in options_of(make).items()
        if isinstance(option.default, bool | int | float | str)
    ]
    return dict(plain[:2])


def flow(value: Mapping[str, Any]) -> str:
    """YAML on one line, with its first key outside the braces.

    >>> flow({"method": {"name": "er", "size": 500}})
    'method: {name: er, size: 500}'
    """
    text = yaml.safe_dump(dict(value), default_flow_style=True, sort_keys=False, width=10**6).strip()
    return text[1:-1]


def facts_of(card: Card) -> dict[str, str]:
    """What a card says in one line each."""
    return {name: sentence(text) for name in FACTS if (text := getattr(card, name))} | (
        {"differs": "\n".join(f"- {point}" for point in card.differs)} if card.differs else {}
    )


def text_of(card: Card, *, idea: bool = True) -> str:
    """Idea and use of a card, in paragraphs."""
    return "\n\n".join(filter(None, [card.idea if idea else "", card.more, card.use]))


def rows_of(make: Callable[..., Any]) -> tuple[tuple[str, str, str, str], ...]:
    """The options of a recipe or part: name, default with where it comes from, what may be given, what it is."""
    return tuple(
        (
            option.name,
            default_of(option) + ("" if option.source == OURS else f" ({option.source})"),
            option.words,
            option.meaning,
        )
        for option in options_of(make).values()
    )


def default_of(option: Option) -> str:
    """The default as YAML has it; nothing where an option must be given or is a section of its own."""
    if option.default in (PydanticUndefined, inspect.Parameter.empty) or isinstance(option.default, BaseModel):
        return ""
    return shown_value(option.default)


def sentence(text: str) -> str:
    """A text as a sentence.

    >>> sentence("share of rows")
    'Share of rows.'
    """
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") or not text else ".")


def rendered(what: Shown) -> RenderableType:
    """It all on the terminal."""
    found: list[RenderableType] = [Text(what.name, style="bold"), Text(what.title)]
    if what.text:
        found += [Text(), *(Text(one) for one in unwrapped(what.text))]
    if what.facts:
        facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for label, text in what.facts.items():
            facts.add_row(Text(label, style="dim"), Text(text))
        found += [Text(), facts]
    if what.options:
        options = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("option", "default", "give", "meaning"):
            options.add_column(column)
        for row in what.options:
            options.add_row(*(Text(cell, style="bold" if number == 0 else "") for number, cell in enumerate(row)))
        found += [Text(), options]
    if what.example:
        found += [Text(), Text("example", style="dim"), Padding(Text(what.example), (0, 0, 0, 2))]
    return Group(*found)


def unwrapped(text: str) -> list[str]:
    """Paragraphs as single lines that the terminal wraps by itself; what is indented stays as it is.

    >>> unwrapped("a\\nb\\n\\nc")
    ['a b', '', 'c']
    """
    found: list[str] = []
    for paragraph in text.split("\n\n"):
        plain = textwrap.dedent(paragraph) == paragraph
        found += [" ".join(paragraph.split()) if plain else paragraph, ""]
    return found[:-1]
