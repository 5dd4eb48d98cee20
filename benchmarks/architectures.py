"""Which method works on which architecture: two tasks on tiny random models, tried cell by cell, as a page.

    python benchmarks/architectures.py cells.jsonl --page docs/architectures.md          # every cell, about an hour
    python benchmarks/architectures.py cells.jsonl --methods lora osf --architectures t5 mixtral
    python benchmarks/architectures.py cells.jsonl --page docs/architectures.md --run 0  # the page of what was tried alone

One JSON line per cell is added to the file; cells that it has are not tried again, so a stopped run goes on. What a cell
asks is in `contune.checks.architectures.cells`.
"""

import argparse
import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

Cells = Mapping[tuple[str, str], Mapping[str, Any]]

HEAD = """# Methods on architectures

Made by `python benchmarks/architectures.py`, which tries every method that answers in writing on tiny random models of
{count} architectures, two layers of width 32, made from the configurations of transformers {transformers}, with peft {peft}
and torch {torch}. Nothing is in these tables that was not run; what was not tried yet is said below them.

A cell passes where the method, with its own options, learns two tasks; answers two questions of different length together as
it answers each alone; answers the same when it is loaded again; ends with the same bits when it is stopped inside the second
task; and, where it can be exported, costs the same nats a token, within 1e-3, in stock libraries that load what was exported
and read one text at a time. What was compared: P an adapter that stock peft loads, T a model that stock transformers loads,
✓ nothing, since the method has neither form (prompts, or several modules with a router). A number is a refusal before any
compute, with the sentence below; ✗ is a fault, with what was seen.

Options that differ from a method's own, so that tiny models have room: {options}.
"""
# Full-size defaults that a matrix of width 32 has no room for, or would train whole.
OPTIONS: dict[str, dict[str, Any]] = {"lift": {"rank": 4, "filter_rank": 4}, "sapt": {"attempts": 8}}


def language_methods() -> list[str]:
    """The recipes that an objective with written answers takes."""
    from contune.checks.setting import settings
    from contune.method.catalog import build_method, recipes

    setting = settings()["answers"]
    return [name for name in recipes() if setting.refusal(build_method(name, {})) is None]


def read_cells(file: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What was tried, by method and architecture."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {(row["method"], row["architecture"]): row for row in rows}


def mark(cell: Mapping[str, Any] | None, notes: dict[str, int]) -> str:
    """One cell of a table; a sentence that was not met yet gets the next number."""
    if cell is None:
        return ""
    if cell["verdict"] == "pass":
        return {"peft": "P", "transformers": "T"}.get(cell["stock"], "✓")
    number = notes.setdefault(note_of(cell), len(notes) + 1)
    return f"{number}" if cell["verdict"] == "refused" else f"✗ {number}"


def note_of(cell: Mapping[str, Any]) -> str:
    """The sentence of a refusal or a fault, without what differs between models alone."""
    words = str(cell["words"]).replace(f"/{cell['architecture']}", "the model")
    words = re.sub(r"\d+%", "most", re.sub(r"\b\d+ such", "such", words))
    words = re.sub(r"^\w+Model does not", "the model does not", words)
    return re.sub(r"and '[\w.]+' is none", "and a router's or experts' weight is none", words)


def page(cells: Cells, methods: list[str], architectures: list[str]) -> str:
    """The page as Markdown: tables of at most ten architectures, and the sentences."""
    versions = {name: version(name) for name in ("transformers", "peft", "torch")}
    options = "; ".join(
        f"`{name}` {', '.join(f'{k} {v}' for k, v in own.items())}" for name, own in OPTIONS.items() if own
    )
    lines = [HEAD.format(count=len(architectures), options=options, **versions)]
    notes: dict[str, int] = {}
    for start in range(0, len(architectures), 10):
        some = architectures[start : start + 10]
        lines += [f"| method | {' | '.join(some)} |", f"|---|{'---|' * len(some)}"]
        rows = [m for m in methods if any((m, a) in cells for a in some)]
        lines += [f"| `{m}` | {' | '.join(mark(cells.get((m, a)), notes) for a in some)} |" for m in rows]
        lines.append("")
    tried = [cells[m, a] for m in methods for a in architectures if (m, a) in cells]
    counts = {each: sum(cell["verdict"] == each for cell in tried) for each in ("pass", "refused", "FAIL")}
    found = f"{counts['pass']} pass, {counts['refused']} are refused, {counts['FAIL']} are faults."
    lines += [f"{len(tried)} cells: {found}", ""]
    untried = [f"`{m}`" for m in methods if not any((m, a) in cells for a in architectures)]
    if len(tried) < len(methods) * len(architectures):
        lines += [f"Not tried yet: empty cells, and {', '.join(untried) or 'no whole method'}.", ""]
    return "\n".join([*lines, *(f"{number}. {words}" for words, number in notes.items())]) + "\n"


def main() -> None:
    """Try what is missing, then write the page."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from contune.checks.architectures.cells import tried
    from contune.checks.architectures.models import ARCHITECTURES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path, help="JSON lines, one a cell")
    parser.add_argument("--page", type=Path, help="write the tables there")
    parser.add_argument("--methods", nargs="*", default=[])
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--run", type=int, default=100_000, help="at most so many new cells")
    chosen = parser.parse_args()
    cells, methods = read_cells(chosen.cells), chosen.methods or language_methods()
    missing = [(m, a) for m in methods for a in chosen.architectures if (m, a) not in cells]
    for method, architecture in missing[: chosen.run]:
        found = tried(architecture, method, **OPTIONS.get(method, {}))
        row = {"method": method, "architecture": architecture, "verdict": found.verdict}
        row |= {"stock": found.stock, "words": found.words}
        with chosen.cells.open("a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(method, architecture, found.verdict, found.words[:100], flush=True)
    if chosen.page is not None:
        chosen.page.write_text(page(read_cells(chosen.cells), methods, chosen.architectures))


if __name__ == "__main__":
    main()
