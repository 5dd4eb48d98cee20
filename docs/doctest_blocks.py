"""An extension of griffe: doctests in docstrings become blocks of code on the pages of the reference."""

from typing import Any

import griffe


class DoctestBlocks(griffe.Extension):
    """Puts a fence around every doctest, which Markdown would otherwise read as a quotation."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    r"""The text with a fence around each run of lines from `>>>` to the next empty line.

    >>> fenced("Sum.\n\n>>> 1 + 1\n2")
    'Sum.\n\n```pycon\n>>> 1 + 1\n2\n```'
    """
    lines, inside = [], False
    for line in text.splitlines():
        if not inside and line.lstrip().startswith(">>>"):
            lines, inside = [*lines, "```pycon"], True
        elif inside and not line.strip():
            lines, inside = [*lines, "```"], False
        lines.append(line if inside else line.replace("][", "]\\["))
    return "\n".join([*lines, "```"] if inside else lines)
