"""Plain text in pieces, each learned as one example, and tested with the text before it where that is asked for."""

import re
from itertools import accumulate
from pathlib import Path

from contune.errors import DataError
from contune.stream.config import LanguageConfig
from contune.stream.conversation import Conversation
from contune.stream.read.files import content, require_file

BREAKS = ("\n\n", "\n", ". ", " ")


def asked_pieces(file: Path, how: LanguageConfig) -> list[Conversation]:
    """The pieces of a file that tests, each with as much of the text before it as `context` says."""
    return document_exchanges(read_text(file), how, str(file), context=how.context)


def document_exchanges(text: str, how: LanguageConfig, source: str = "", context: int = 0) -> list[Conversation]:
    """The pieces of every document of a text; documents end where `boundary` stands, or with the file.

    `context` characters of the document before a piece are what it is read with.
    """
    documents = text.split(how.boundary) if how.boundary else [text]
    found: list[Conversation] = []
    for document in documents:
        parts = pieces(document, how.piece)
        starts = [0, *accumulate(map(len, parts))][: len(parts)]
        kept = [(start, piece) for start, piece in zip(starts, parts, strict=True) if piece.strip()]
        for number, (start, piece) in enumerate(kept):
            before = document[max(start - context, 0) : start]
            place = f"{source}, piece {len(found) + 1}" if source else ""
            ends = number == len(kept) - 1
            found.append(Conversation((), (piece,), (), "tokens", ends=ends, before=before, place=place))
    return found


def pieces(text: str, size: int) -> list[str]:
    """The text in pieces of at most `size` characters, cut after a paragraph, line, sentence or word where one ends.

    Nothing is lost: the pieces together are the text.

    >>> pieces("One two. Three", 10)
    ['One two. ', 'Three']
    """
    found, start = [], 0
    while len(text) - start > size:
        middle, end = start + size // 2, start + size
        cuts = (at + len(mark) for mark in BREAKS if (at := text.rfind(mark, middle, end)) >= 0)
        stop = min(next(cuts, end), end)
        found.append(text[start:stop])
        start = stop
    return [*found, text[start:]] if start < len(text) else found


def read_text(path: Path) -> str:
    """A text file, gzipped or not, with lines that end in a single newline."""
    require_file(path, "*.txt")
    try:
        text = content(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start + 1}); write it as UTF-8") from error
    if not text.strip():
        raise DataError(f"{path} is empty; give a file with text")
    return re.sub(r"\r\n?", "\n", text)
