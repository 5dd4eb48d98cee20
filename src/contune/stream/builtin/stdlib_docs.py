"""The built-in stream `stdlib-docs`: which module of Python's standard library does this sentence describe?

Every text is the first paragraph of a function's, method's or class's docstring; its label is the top-level module.
The sources are parsed, never imported.
"""

import ast
import gc
import hashlib
import os
import platform
import re
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import cleandoc
from pathlib import Path

from contune.errors import DataError
from contune.stream.read.rows import Place, Row, Split

LEAST_EXAMPLES = 40
MOST_EXAMPLES = 100
LEAST_WORDS = 3
# Tests, and programs or data that come with Python but are no modules that anybody imports.
NOT_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "__phello__", "idlelib", "lib2to3"}
    | {"turtledemo", "ensurepip", "encodings", "pydoc_data", "msilib"}
)
_DEFINITION = re.compile(rb"\b(?:def|class)\s")
_WORD = re.compile(r"[A-Za-z]{2,}")
# Prose is mostly letters; grammar rules, signatures and calls with their results ("od.__iter__() <==> ...") are not.
LEAST_LETTERS = 0.75


def read_stdlib_docs(root: Path | None = None) -> tuple[dict[str, Split], str]:
    """Train and test rows and a note that says which Python they are from.

    Modules with at least 40 texts, at most 100 of each, chosen by the sha256 of the text; every fourth of those in the
    same order is a test example. Texts that two modules share are dropped from both. Raises DataError where this
    Python has no library sources.
    """
    folder = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    texts = exclusive_texts(module_texts(folder))
    chosen = {
        module: sorted(found, key=_digest)[:MOST_EXAMPLES]
        for module, found in sorted(texts.items())
        if len(found) >= LEAST_EXAMPLES
    }
    if not chosen:
        raise DataError(
            f"{folder} holds no sources of Python's standard library; install Python with its sources to use "
            "stdlib-docs"
        )
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    inputs: dict[str, list[str]] = {"train": [], "test": []}
    places: dict[str, list[Place]] = {"train": [], "test": []}
    for module, found in chosen.items():
        for rank, text in enumerate(found):
            split = "test" if rank % 4 == 3 else "train"
            inputs[split].append(text)
            places[split].append(Place(f"docstrings of {module}", "text", rank + 1))
            at = len(rows[split])
            rows[split].append(Row(inputs[split], at, module, None, at, places[split].__getitem__))
    splits = {name: Split(part, (), len(part), tuple(chosen)) for name, part in rows.items()}
    note = (
        f"docstrings of the standard library of Python {platform.python_version()}: {len(chosen)} modules, "
        f"{len(rows['train'])} training and {len(rows['test'])} test texts; another Python version has other texts"
    )
    return splits, note


def exclusive_texts(texts: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Every module's own texts, each once; a text of two modules describes neither.

    >>> exclusive_texts({"a": ["Close the file now.", "Open it.", "Open it."], "b": ["Close the file now."]})
    {'a': ['Open it.'], 'b': []}
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for module, found in texts.items():
        for text in found:
            owners[text].add(module)
    return {
        module: [text for text in dict.fromkeys(found) if len(owners[text]) == 1] for module, found in texts.items()
    }


def module_texts(folder: Path) -> dict[str, list[str]]:
    """First docstring paragraphs by top-level module, in source order, from every module that could have enough."""
    sources: dict[str, list[bytes]] = defaultdict(list)
    for path in _source_files(folder):
        module = public_module(path.relative_to(folder).parts[0].removesuffix(".py"))
        if module is not None:
            sources[module].append(path.read_bytes())
    with _without_collector():
        return {
            module: [text for source in files for text in _texts(source)]
            for module, files in sources.items()
            # No more docstrings than definitions: most small modules need no parsing.
            if sum(len(_DEFINITION.findall(source)) for source in files) >= LEAST_EXAMPLES
        }


def public_module(name: str) -> str | None:
    """The name a user knows the module by; None for a private module.

    The pure Python twin of a module belongs to it: where a Python version keeps `decimal` in `_pydecimal`, the texts
    are decimal's.

    >>> public_module("_pydecimal"), public_module("_strptime"), public_module("json")
    ('decimal', None, 'json')
    """
    if name.startswith("_py") and len(name) > 3:
        return name.removeprefix("_py")
    return None if name.startswith("_") else name


def first_paragraph(docstring: str) -> str | None:
    """The first paragraph on one line, without interactive examples; None where it is no prose of three words or more.

    >>> first_paragraph('''Close it.
    ...
    ...     More about it.''')
    >>> first_paragraph('''Close the
    ...     open file.
    ...
    ...     More about it.''')
    'Close the open file.'
    """
    paragraph = re.split(r"\n[ \t]*\n", cleandoc(docstring), maxsplit=1)[0]
    text = " ".join(paragraph.partition(">>>")[0].split())
    words = sum(_WORD.search(word) is not None for word in text.split())
    letters = sum(character.isalpha() for character in text)
    if words < LEAST_WORDS or letters < LEAST_LETTERS * len(text.replace(" ", "")):
        return None
    return text


def _texts(source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        # Some files of the library are broken on purpose, or templates.
        return
    for docstring in _docstrings(tree.body):
        text = first_paragraph(docstring)
        if text is not None:
            yield text


def _docstrings(body: Iterable[ast.AST]) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            docstring = ast.get_docstring(statement, clean=False)
            if docstring is not None:
                yield docstring
        # Statements only: definitions never hide inside expressions, and most of a tree is expressions.
        for part in ("body", "handlers", "orelse", "finalbody", "cases"):
            inner = getattr(statement, part, None)
            if isinstance(inner, list):
                yield from _docstrings(inner)


def _source_files(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in NOT_LIBRARY)
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith("test_"):
                yield Path(parent, name)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Syntax trees are millions of objects and no cycles; looking for cycles among them doubles the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
