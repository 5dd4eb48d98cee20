"""An extension of griffe for the reference: doctests and aligned columns become blocks of code.

Fields that `__init__` sets without saying a word about them are left out.
"""

import re
from typing import Any

import griffe


class DoctestBlocks(griffe.Extension):
    """Puts a fence around what Markdown would read otherwise: doctests as quotations, columns as running text."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of one object, and drop the fields of a class that nothing is said about."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
        made = obj.members.get("__init__") if obj.is_class else None
        for name, member in list(obj.members.items()) if made is not None and made.is_function else []:
            inside = (made.lineno or 0) <= (member.lineno or 0) <= (made.endlineno or 0)
            if member.is_attribute and inside and member.docstring is None:
                obj.del_member(name)


def fenced(text: str) -> str:
    r"""The text with a fence around its paragraphs of doctests and of columns; `R[i][j]` is no link.

    >>> fenced("Sum.\n\n>>> 1 + 1\n2")
    'Sum.\n\n```pycon\n>>> 1 + 1\n2\n```'
    >>> fenced("x    one thing\ny    another")
    '```text\nx    one thing\ny    another\n```'
    """
    return "\n\n".join(shown(paragraph) for paragraph in re.split(r"\n[ \t]*\n", text))


def shown(paragraph: str) -> str:
    """One paragraph as Markdown."""
    doctest = re.search(r"^[ \t]*>>>", paragraph, flags=re.MULTILINE)
    if doctest is not None:
        before, code = paragraph[: doctest.start()].rstrip(), paragraph[doctest.start() :].rstrip()
        return (shown(before) + "\n\n" if before else "") + f"```pycon\n{code}\n```"
    if re.search(r"\S {3,}\S", paragraph) and not paragraph.startswith("    "):  # which is a block already
        return f"```text\n{paragraph.rstrip()}\n```"
    return paragraph.replace("][", "]\\[")
