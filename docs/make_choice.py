"""Write the table of docs/which-method.md from the figures of docs/results.md: python docs/make_choice.py."""

import re
from pathlib import Path

DOCS = Path(__file__).parent
MARKS = ("<!-- figures -->", "<!-- end of figures -->")
# What a method keeps of the past, beside the model and its head; in the order of the table.
KEPT = {
    "nmc": "sums of features per class",
    "acil": "sums of products of features",
    "ranpac": "sums of products of features",
    "aper": "sums of features per class",
    "ease": "sums of features per class, an adapter per task",
    "slca": "mean and covariance per class",
    "slca++": "mean and covariance per class",
    "mos": "mean and covariance per class, an adapter per task",
    "dualprompt": "a prefix per task",
    "sd-lora": "a LoRA per task",
    "inflora": "a LoRA per task, directions of old inputs",
    "gpm": "directions of old inputs",
    "er": "500 examples",
    "der++": "500 examples and their scores",
    "lora": "nothing",
    "joint": "all examples, so it is not continual",
}
COLUMNS = (
    "method",
    "keeps of the past",
    "texts",
    "images, 112 px",
    "images, 224 px",
    "stored: texts, images",
    "training",
    "written answers",
)


def page(text: str) -> str:
    """The page with its table made anew."""
    before, rest = text.split(MARKS[0])
    return f"{before}{MARKS[0]}\n\n{table()}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


def table() -> str:
    """One row for every method of KEPT; a dash where results.md has no figure."""
    results, catalogue = (DOCS / "results.md").read_text(), (DOCS / "methods.md").read_text()
    texts, images, whole = (block(results, name) for name in ("clinc150", "cifar100", "cifar100-224"))
    costs = dict(re.findall(r"^\| `([^`]+)` \| ([\d.]+) \| [\d.]+ \|$", results, flags=re.MULTILINE))
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|" + "--:|" * 5 + "---|"]
    for name, kept in KEPT.items():
        text, image, large = texts[name], images[name], whole.get(name, {})
        cells = [
            f"[`{name}`](methods.md#{anchor(name)})",
            kept,
            figures(text),
            figures(image),
            figures(large),
            f"{text['Stored']}, {image['Stored']}",
            costs.get(name, "–"),
            written(catalogue, name),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(row: dict[str, str]) -> str:
    """Last accuracy, and forgetting in brackets where there is any."""
    forgetting = row.get("Forgetting", "–")
    return row.get("Last accuracy", "–") + (f" ({forgetting})" if forgetting != "–" else "")


def block(results: str, name: str) -> dict[str, dict[str, str]]:
    """A table of results.md by method and column; of mean and deviation the mean."""
    inside = results.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0].strip().splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in inside]
    return {row[0]: dict(zip(head, (cell.split(" ±")[0] for cell in row), strict=True)) for row in rows}


def anchor(name: str) -> str:
    """The anchor of a method's heading in methods.md; `slca++` is the second that is called slca there."""
    return {"slca++": "slca-1"}.get(name, name.replace("+", ""))


def written(catalogue: str, name: str) -> str:
    """Whether the method learns written answers, as methods.md says."""
    section = re.split(r"\n##? ", catalogue.split(f"\n## {name}\n")[1])[0]
    return "yes" if "In language streams: yes" in section else "no"


if __name__ == "__main__":
    file = DOCS / "which-method.md"
    file.write_text(page(file.read_text()))
