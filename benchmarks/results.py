"""The results page: methods x streams x class orders, resumable; run it again and it goes on where it stopped.

    python benchmarks/results.py ../shared runs/results --tune --epochs 1 --batch-size 8 --equal-replay \
        --test-per-class 10 --picture docs/results.png --processes 4     # everything, on 4 cores
    python benchmarks/results.py ../shared runs/results --only cifar100-224 --methods nmc ranpac:small acil dkvb \
        linear-probe lora er --tune --epochs 1 --batch-size 8 --equal-replay             # a few at the model's own size
    python benchmarks/results.py ../shared runs/mine --only clinc150 --methods nmc ranpac:small --page mine.md
    python benchmarks/results.py ../shared runs/text --only text-minilm text-stories text-written \
        --methods nmc ranpac:small lora er o-lora joint --epochs 3 --batch-size 16 --page docs/text-results.md

Without --methods all recipes take part that the literature compares on encoders; any other can be named, and with a colon
a form of one: ranpac:small. With --tune the
learning rate of a method is a third, once or three times its recipe's, whichever is most accurate on a fifth of the training
data of the first two tasks of order 0, held out; no test example is looked at for it. With --epochs and --batch-size all
take the same number of steps. With --processes so many runs go on at once. Tables hold all finished runs of the folder.

Recorded choices that make it affordable: images are read at 112 pixels with interpolated positions (--image-size), texts
are 40 a class (--per-class), and LoRA sits in the upper half of the layers, so that the lower half is computed once.
Frozen results are shared between runs through one cache folder. The tables of docs/results.md are replaced.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from contune import Task
from contune._files import write_json
from runs import finished, run_one
from sweep import ENCODER_METHODS, config_of, in_order, possible, streams, takes_steps, train_of

if TYPE_CHECKING:
    from contune.run.report.compare import Comparison


def choose_rates(pool: Executor, configs: dict[str, dict[str, Any]], file: Path) -> dict[str, float]:
    """The learning rates of these methods, by name; what `file` has is taken from it, and what is found goes there."""
    known = kept_rates(file)
    chosen = {pool.submit(tuned_rate, config): method for method, config in configs.items() if method not in known}
    file.parent.mkdir(parents=True, exist_ok=True)
    for done in as_completed(chosen):
        write_json(file, kept_rates(file) | {chosen[done]: done.result()})  # another sweep may have written meanwhile
    return kept_rates(file)


def kept_rates(file: Path) -> dict[str, float]:
    """Learning rates chosen so far, by method."""
    return json.loads(file.read_text()) if file.exists() else {}


def tuned_rate(config: dict[str, Any]) -> float:
    """The learning rate for a run's method, chosen on held-out data of its first two tasks in order 0."""
    from contune import StreamConfig, load_stream
    from contune.contract.settings import TrainSettings
    from contune.method.catalog import build_method

    rate = float(build_method(config["method"]["name"], {}).train.get("lr", TrainSettings().lr))
    tasks = load_stream(StreamConfig(**{**config["stream"], "order_seed": 0, "validation": 0.2})).tasks[:2]
    scores = {lr: held_out_accuracy(config, lr, tasks) for lr in (rate / 3, rate, rate * 3)}
    return max(scores, key=lambda lr: scores[lr])


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
    for experience in [tasks] if recipe.joint else tasks:
        learner.learn(experience)
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
    parser.add_argument("--methods", nargs="+", default=ENCODER_METHODS, help="recipes; without it all of encoders")
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
    parser.add_argument("--processes", type=int, default=1, help="runs at the same time; they share the cores")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // chosen.processes))
    with ProcessPoolExecutor(chosen.processes, get_context("spawn")) as pool:
        runs = runs_of(chosen, pool)
        write_page(chosen.out, chosen.only, chosen.page, times=not chosen.no_times)
        waiting = [pool.submit(run_one, config, folder) for folder, config in runs.items() if not finished(folder)]
        for done in as_completed(waiting):
            done.result()
            write_page(chosen.out, chosen.only, chosen.page, times=not chosen.no_times)
    if chosen.picture:
        draw(chosen.out, chosen.only, chosen.picture)


def runs_of(chosen: argparse.Namespace, pool: Executor) -> dict[Path, dict[str, Any]]:
    """The configuration of every run by its folder, all methods and streams in one order before the next."""
    same = {key: value for key in ("epochs", "batch_size") if (value := getattr(chosen, key)) is not None}
    replayed = chosen.batch_size if chosen.equal_replay else None
    benchmarks = streams(
        chosen.shared, chosen.out, chosen.only, chosen.image_size, chosen.per_class, chosen.test_per_class
    )
    configs = {
        (name, method): config
        for method in chosen.methods
        for name in chosen.only
        if possible(config := config_of(benchmarks[name], method, 0, train_of(method, same), chosen.out, replayed))
    }
    if chosen.tune:
        for name in chosen.only:
            mine = {method: config for (of, method), config in configs.items() if of == name and takes_steps(method)}
            for method, rate in choose_rates(pool, mine, chosen.out / name / "rates.json").items():
                if method in mine:
                    mine[method]["train"]["lr"] = rate
    return {
        chosen.out / name / f"{method.replace(':', '-')}-order{order}": in_order(config, order)
        for order in range(chosen.orders)
        for (name, method), config in configs.items()
    }


def write_page(out: Path, names: list[str], page: Path, *, times: bool) -> None:
    """Put one table per stream, best first, between the marks of the page; a new page has marks alone."""
    from contune.run.report.tables import table

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
    from contune.run.report.compare import compare

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
