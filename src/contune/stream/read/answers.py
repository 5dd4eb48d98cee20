"""Answers that are no single class, as they stand in a column: several names, a tag for each word, or a number."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, final

SEPARATOR = "|"  # between names where a cell is one text


class Answers(ABC):
    """What a cell of the answers' column says. `columns` are its usual names; `reads` the modality of the inputs."""

    columns: ClassVar[tuple[str, ...]]
    reads: ClassVar[str | None] = None

    @abstractmethod
    def of(self, value: object) -> Any:
        """The answer, or None where the cell holds none."""

    @abstractmethod
    def reason(self, value: object, column: str) -> str:
        """Why a cell holds none, as a clause."""


def names_in(value: object) -> tuple[str, ...] | None:
    """Names in a list, or in a text between bars; None where the value holds none of them.

    >>> names_in("sport|politics"), names_in(["a", 3]), names_in(""), names_in(None)
    (('sport', 'politics'), ('a', '3'), (), None)
    """
    if isinstance(value, str):
        value = [part.strip() for part in value.split(SEPARATOR)] if value.strip() else []
    if not isinstance(value, list | tuple):
        return None
    if not all((isinstance(one, str) and one.strip()) or (isinstance(one, int) and one is not True) for one in value):
        return None
    return tuple(dict.fromkeys(str(one) for one in value))


@final
class Several(Answers):
    """Any number of names: a list, or a text with bars between them."""

    columns: ClassVar[tuple[str, ...]] = ("labels", "label", "classes", "tags", "categories", "topics")

    def of(self, value: object) -> tuple[str, ...] | None:
        return names_in(value)

    def reason(self, value: object, column: str) -> str:
        return f"the labels (column {column!r}) are {str(value)[:60]!r} and no list of names, nor names with | between them"


@final
class Tags(Answers):
    """A list with the tag of every word."""

    columns: ClassVar[tuple[str, ...]] = ("tags", "ner_tags", "pos_tags", "labels")
    reads: ClassVar[str | None] = "words"

    def of(self, value: object) -> tuple[str, ...] | None:
        if not isinstance(value, list | tuple) or not value:
            return None
        return tuple(map(str, value)) if all(isinstance(one, str | int) and str(one).strip() for one in value) else None

    def reason(self, value: object, column: str) -> str:
        return f"the tags (column {column!r}) are {str(value)[:60]!r} and no list of tags, one for each word"


@final
class Value(Answers):
    """A number."""

    columns: ClassVar[tuple[str, ...]] = ("value", "target", "score", "label", "y")

    def of(self, value: object) -> float | None:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)

    def reason(self, value: object, column: str) -> str:
        return f"the value (column {column!r}) is {str(value)[:60]!r} and no finite number"


ANSWERS: Mapping[str, Answers] = {"multi-label": Several(), "tag": Tags(), "regress": Value()}
