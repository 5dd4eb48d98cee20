"""What the laws of the sources' shape say, as functions of a folder of sources."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

KINDS_OF_PARTS = {"adapter", "head", "rule", "router", "objective", "modality"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def full_folders(root: Path, most: int = 12) -> dict[str, int]:
    """Folders with more than `most` Python files, `__init__.py` aside."""
    counts: dict[str, int] = {}
    for file in root.rglob("*.py"):
        if file.name != "__init__.py":
            folder = file.parent.relative_to(root).as_posix()
            counts[folder] = counts.get(folder, 0) + 1
    return {folder: count for folder, count in sorted(counts.items()) if count > most}


def long_files(root: Path, most: int = 400) -> dict[str, int]:
    """Files of more than `most` lines."""
    counts = {file.relative_to(root).as_posix(): len(file.read_text().splitlines()) for file in root.rglob("*.py")}
    return {name: count for name, count in sorted(counts.items()) if count > most}


def long_functions(root: Path, most: int = 40) -> dict[str, int]:
    """Functions whose body is longer than `most` lines; the signature and the docstring, which explain it, aside."""
    found = {}
    for file, tree in trees(root):
        for node in ast.walk(tree):
            if isinstance(node, Function):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
                if lines > most:
                    found[f"{file.relative_to(root).as_posix()}:{node.name}"] = lines
    return found


def circle(root: Path) -> list[str]:
    """Files that import each other in a circle, one such circle if there are any; imports for types alone aside."""
    modules = {module_name(root, file): tree for file, tree in trees(root)}
    graph = {name: imported(tree) & set(modules) for name, tree in modules.items()}
    try:
        TopologicalSorter({name: found - {name} for name, found in graph.items()}).prepare()
    except CycleError as error:
        return [str(name) for name in error.args[1]]
    return []


def imported(tree: ast.Module) -> set[str]:
    """Modules that a file imports, here or inside its functions; `from a import b` may mean `a.b`."""
    found = set()
    for node in nodes_at_run_time(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def special_cases(root: Path, rooms: tuple[str, ...], part_names: set[str]) -> list[str]:
    """Lines of code in `rooms` that know a concrete kind of stream, input or part, as `file:line`.

    Counted are: `isinstance` of a class that comes from a room of parts; a comparison of `kind` or `modality`
    with a text; a comparison of a name with a part's name; every use of the word `language` in code. Comments and
    docstrings are not code. A line counts once.
    """
    found = set()
    for file, tree in trees(root):
        path = file.relative_to(root)
        if path.parts[0] not in rooms:
            continue
        concrete, texts = concrete_parts(tree), docstrings(tree)
        for node in ast.walk(tree):
            if id(node) not in texts and knows_a_case(node, concrete, part_names):
                found.add((path.as_posix(), node.lineno))  # type: ignore[attr-defined]
    return [f"{name}:{line}" for name, line in sorted(found)]


def knows_a_case(node: ast.AST, concrete: set[str], part_names: set[str]) -> bool:
    """Whether one node of the code is such a place."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
        return any(isinstance(inner, ast.Name) and inner.id in concrete for inner in ast.walk(node.args[1]))
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        words = {inner.value for side in sides for inner in ast.walk(side) if isinstance(inner, ast.Constant)}
        names = {last_name(side) for side in sides}
        texts = {word for word in words if isinstance(word, str)}
        return bool(names & {"kind", "modality"} and texts) or bool("name" in names and texts & part_names)
    return "language" in words_of(node)


def last_name(node: ast.AST) -> str:
    """`kind` for `kind`, `stream.kind` and `stream["kind"]`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return ""


def words_of(node: ast.AST) -> set[str]:
    """The words that the names of one node are made of; a text counts when it is one word."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
            names = [name]
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.keyword(arg=str(name)):
            names = [name]
        case ast.ImportFrom(module=str(name), names=aliases):
            names = [name, *(alias.name for alias in aliases)]
        case ast.Constant(value=str(name)) if name.isidentifier():
            names = [name]
        case _:
            names = []
    return {word for name in names for word in name.lower().replace(".", "_").split("_")}


def concrete_parts(tree: ast.Module) -> set[str]:
    """Names that a file imports from a room of parts."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("contune.")
        if node.module.split(".")[1] in KINDS_OF_PARTS
        for alias in node.names
    }


def docstrings(tree: ast.Module) -> set[int]:
    """The nodes of texts that stand alone, which are docstrings."""
    lone = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return {id(value) for value in lone if isinstance(value, ast.Constant)}


def nodes_at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from nodes_at_run_time(node)


def trees(root: Path) -> Iterator[tuple[Path, ast.Module]]:
    """Every Python file below a folder with its syntax tree."""
    for file in sorted(root.rglob("*.py")):
        yield file, ast.parse(file.read_text())


def module_name(root: Path, file: Path) -> str:
    """`contune.run.config` for `contune/run/config.py`, where `root` is the folder `contune`."""
    parts = (root.name, *file.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
