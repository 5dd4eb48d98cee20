"""The docstring of a recipe or part, taken apart: idea, when to use it, memory, compute, defaults and differences."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

LABELS = {"Use it": "use", "Memory:": "memory", "Compute:": "compute", "Defaults:": "defaults", "Differs:": "differs"}
START = re.compile(r"^(?=Use it )|(?:^|(?<=[.;] ))(?=(?:Memory|Compute|Defaults|Differs):)", re.MULTILINE)


@final
@dataclass(frozen=True)
class Card:
    """What a docstring says. `idea` is its first line, `more` what else there is; what it leaves out is empty."""

    idea: str
    more: str = ""
    use: str = ""
    memory: str = ""
    compute: str = ""
    defaults: str = ""
    differs: tuple[str, ...] = ()


def card_of(make: Callable[..., Any]) -> Card:
    """The card of a recipe or part, without its examples.

    >>> def recipe():
    ...     '''Learn it.
    ...
    ...     Use it often.
    ...
    ...     Memory: none. Compute: one pass.
    ...     Differs:
    ...     - It is short.
    ...     '''
    >>> card = card_of(recipe)
    >>> card.idea, card.use, card.memory, card.compute, card.differs
    ('Learn it.', 'Use it often.', 'none', 'one pass', ('It is short.',))
    """
    idea, _, rest = (inspect.getdoc(make) or "").split("\n>>> ")[0].partition("\n")
    found: dict[str, Any] = {}
    more: list[str] = []
    for piece in START.split(rest):
        label = next((label for label in LABELS if piece.startswith(label)), None)
        if label is None:
            more.append(piece.strip())
            continue
        text, _, after = piece.partition("\n\n")
        more.append(after.strip())
        found[LABELS[label]] = text if label == "Use it" else text.removeprefix(label)
    differs = tuple(one_line(point) for point in re.split(r"^- ", found.pop("differs", ""), flags=re.MULTILINE))
    lines = {name: one_line(text) for name, text in found.items()}
    for name in ("memory", "compute", "defaults"):
        lines[name] = lines.get(name, "").rstrip(".")
    return Card(idea, "\n\n".join(filter(None, more)), differs=tuple(filter(None, differs)), **lines)


def one_line(text: str) -> str:
    """Text without its line breaks.

    >>> one_line(" a\\n  b ")
    'a b'
    """
    return " ".join(text.split())
