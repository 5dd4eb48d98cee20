"""Every option, key and docstring says what a reader needs, and the checks below notice the next one that does not."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import BaseModel

from contune.contract.options import Alpha
from contune.errors import ConfigError
from contune.head.linear import Linear
from contune.method.card import card_of
from contune.method.catalog import CATEGORIES, build_method, build_part, call_checked, parts, recipes
from contune.method.method import Method
from contune.method.options import OURS, of, options_of
from contune.rule.anchor.anchor import EWC
from contune.run.sections import sections

LONGEST = 120


def every_part() -> dict[str, Callable[..., Any]]:
    return {f"{category}:{name}": part for category in CATEGORIES for name, part in parts(category).items()}


def faults_of_text(text: str) -> Iterator[str]:
    """What is wrong with a text beside an option or key."""
    if not text.strip():
        yield "no word"
    if len(text) > LONGEST:
        yield f"{len(text)} characters"
    if text != text.strip() or re.search(r"\s\s|[.,;:]$|\bTODO\b|\?\?", text.removesuffix("...")):
        yield f"loose ends in {text!r}"


def faults_of_options(make: Callable[..., Any]) -> list[str]:
    """What is wrong with the explanations of the options of a recipe or part."""
    found = []
    for option in options_of(make).values():
        faults = list(faults_of_text(option.meaning))
        optional = option.kind is NoneType or NoneType in get_args(option.kind)
        if optional != ("null" in option.meaning):
            faults.append("null is allowed and not explained, or the other way round")
        faults += [] if option.source.strip() and len(option.source) <= 50 else ["no short source"]
        found += [f"{option.name}: {fault}" for fault in faults]
    return found


def faults_of_card(make: Callable[..., Any], needed: tuple[str, ...]) -> list[str]:
    """What a docstring does not say."""
    card = card_of(make)
    loose = [label for label in ("Memory:", "Compute:", "Defaults:", "Differs:") if label in card.more]
    lacks = [name for name in needed if not getattr(card, name)]
    return [f"lacks {name}" for name in lacks] + [f"{label} stands where it is not found" for label in loose]


@pytest.mark.parametrize("name", recipes())
def test_every_option_of_a_recipe_is_explained(name: str) -> None:
    assert faults_of_options(recipes()[name]) == []
    assert faults_of_card(recipes()[name], ("idea", "use", "memory", "compute")) == []


@pytest.mark.parametrize("name", every_part())
def test_every_option_of_a_part_is_explained(name: str) -> None:
    assert faults_of_options(every_part()[name]) == []
    assert faults_of_card(every_part()[name], ("idea", "memory", "compute")) == []


@pytest.mark.parametrize("section", sections())
def test_every_key_of_the_configuration_is_explained(section: str) -> None:
    fields = sections()[section].model_fields
    assert fields
    assert {key: list(faults_of_text(field.description or "")) for key, field in fields.items()} == {
        key: [] for key in fields
    }


def test_all_of_the_configuration_is_looked_at() -> None:
    assert set(sections()) == {"", "model", "stream", "stream.data", "stream.online"} | {
        "stream.language",
        "stream.language.styles",
        "train",
        "cache",
    }


def hasty(*, size: int = 500, rank: Annotated[int, "rank of the update; "] = 8, mode: int | None = None) -> Method:
    """Learn it."""
    raise AssertionError


def wordy(
    *, size: Annotated[int, "so many words " * 12] = 1, limit: Annotated[int | None, "largest norm"] = None
) -> Method:
    """Learn it.

    Memory: none.
    """
    raise AssertionError


def test_the_checks_notice_an_option_without_a_word() -> None:
    assert "size: no word" in faults_of_options(hasty)
    assert any(fault.startswith("rank: loose ends") for fault in faults_of_options(hasty))
    assert any(fault.startswith("size: ") and "characters" in fault for fault in faults_of_options(wordy))
    assert "limit: null is allowed and not explained, or the other way round" in faults_of_options(wordy)
    assert faults_of_card(wordy, ("use", "memory")) == ["lacks use"]


def test_the_checks_notice_a_key_without_a_word() -> None:
    class Section(BaseModel):
        size: int = 1

    assert list(faults_of_text(Section.model_fields["size"].description or "")) == ["no word"]


def recipe(
    *,
    strength: Annotated[float, EWC] = 100.0,
    pull: Annotated[float, of(EWC, "strength")] = 5.0,
    keep: Annotated[float, of(EWC, "decay"), "paper, table 3"] = 0.5,
    alpha: Annotated[Alpha, "paper"] = 16.0,
) -> Method:
    """A recipe."""
    raise AssertionError


def test_an_option_that_is_handed_on_is_explained_by_the_part() -> None:
    options, known = options_of(recipe), options_of(EWC)
    assert options["strength"].meaning == options["pull"].meaning == known["strength"].meaning
    assert (options["keep"].meaning, options["keep"].source) == (known["decay"].meaning, "paper, table 3")
    assert options["alpha"].source == "paper"
    assert options["alpha"].meaning


def part(*, size: Annotated[int, "examples kept", "paper, section 4"] = 500) -> Linear:
    """A part."""
    raise AssertionError


def test_the_source_of_a_default_goes_with_the_default() -> None:
    def same(*, size: Annotated[int, part] = 500) -> Method: ...

    def other(*, size: Annotated[int, part] = 200) -> Method: ...

    assert options_of(same)["size"].source == "paper, section 4"
    assert options_of(other)["size"].source == OURS


def test_naming_an_option_that_a_part_does_not_have_is_an_error() -> None:
    def wrong(*, power: Annotated[float, EWC] = 1.0) -> Method: ...

    with pytest.raises(LookupError, match=r"'power' is explained by .*EWC.* which has no such option"):
        options_of(wrong)


def test_annotations_change_neither_names_nor_defaults() -> None:
    signatures = [(make, inspect.signature(make).parameters) for make in (*recipes().values(), *every_part().values())]
    assert len(signatures) > 100
    for make, parameters in signatures:
        assert {name: option.default for name, option in options_of(make).items()} == {
            name: parameter.default for name, parameter in parameters.items()
        }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("er", {"size": "many"}, "given 'many'.* give whole number .500 by default.: most examples kept"),
        ("er", {"choice": "fifo"}, "give reservoir or class-balanced .reservoir by default.: "),
        ("gem", {"batch_size": [1]}, r"given \[1\].* give whole number or null"),
        ("er", {"sise": 1}, r"no option 'sise'; did you mean 'size'\? .contune show er."),
    ],
)
def test_wrong_values_are_answered_with_the_meaning(name: str, options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method(name, options)


def test_wrong_values_of_parts_are_answered_with_the_meaning() -> None:
    meaning = options_of(EWC)["fisher"].meaning
    with pytest.raises(ConfigError, match=f"rule 'ewc', option fisher.*{meaning}"):
        build_part("rule", {"ewc": {"fisher": "none"}})
    with pytest.raises(ConfigError, match="contune show rule:ewc"):
        build_part("rule", {"ewc": {"power": 1}})


def test_a_user_s_option_without_a_word_is_checked_all_the_same() -> None:
    def plain(*, size: int = 1, mode: Literal["a", "b"] = "a") -> tuple[int, str]:
        return size, mode

    assert call_checked(plain, {"size": "3"}, "method 'plain'", "help") == (3, "a")
    with pytest.raises(ConfigError, match="give a or b"):
        call_checked(plain, {"mode": "c"}, "method 'plain'", "help")
