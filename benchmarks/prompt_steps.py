"""Accuracy against optimiser steps for the prompt methods, beside LoRA and the heads that take no steps; resumable.

    python benchmarks/prompt_steps.py ../shared runs/steps                      # about two hours on one core
    python benchmarks/prompt_steps.py ../shared runs/steps --rates runs/all/cifar100/rates.json

The first tasks of CIFAR-100 in ten (ten classes and 600 images each), ViT-Tiny; every method takes the same steps, batches
of 32, and is asked about all classes after the last task. Learning rates are the recipes', or those that a sweep of
results.py chose on held-out training data. Points are kept in the folder; the table and the picture are made anew.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import work
from sweep import named, options, takes_steps, train_of

METHODS = ["l2p", "dualprompt", "coda-prompt", "s-prompts", "lora", "nmc", "ranpac:small"]
BATCH = 32


def accuracy_of(chosen: argparse.Namespace, method: str, epochs: int) -> float:
    """Accuracy over all classes after the last task, in percent."""
    from contune import Learner
    from contune.backbone.config import ModelConfig
    from contune.contract.settings import CacheSettings
    from contune.method.catalog import build_method

    rates = json.loads(chosen.rates.read_text()) if chosen.rates else {}
    train = train_of(method, {"epochs": epochs, "batch_size": BATCH})
    train |= {"lr": rates[method]} if rates.get(method) else {}
    model = ModelConfig(path=str(chosen.shared / work.VIT), image_size=chosen.image_size)
    cache = CacheSettings(folder=str((chosen.out / "cache").resolve()))
    learner = Learner(model, build_method(named(method)[0], options(method)), train=train, cache=cache)
    tasks = work.cifar_tasks(chosen.shared, chosen.tasks)
    for task in tasks:
        learner.learn(task)
    right = [learner.answers(data) == data.labels for data in map(learner.test_dataset, tasks)]
    return round(100 * float(np.concatenate(right).mean()), 2)


def picture(points: dict[str, dict[str, float]], steps: dict[str, int], file: Path) -> None:
    """Accuracy over steps a task, one line per method; what takes no steps is a dashed level."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4), layout="constrained")
    for method, found in points.items():
        places = [steps[epochs] for epochs in found]
        if not takes_steps(method):
            level = next(iter(found.values()))
            axes.axhline(level, color="0.45", linestyle="--" if method == "nmc" else ":", label=method)
        else:
            axes.plot(places, list(found.values()), marker="o", label=method)
    axes.set(xscale="log", xlabel="optimiser steps in each task", ylabel="last accuracy, %", ylim=(0, None))
    axes.set_xticks(list(steps.values()), [str(step) for step in steps.values()], minor=False)
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Measure the points that are missing, then print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("out", type=Path, help="the folder for points and cache")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--epochs", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--rates", type=Path, help="the rates.json of a sweep")
    parser.add_argument("--picture", type=Path, help="where the picture goes; OUT/prompt-steps.png otherwise")
    chosen = parser.parse_args()
    chosen.shared = chosen.shared.resolve()
    chosen.out.mkdir(parents=True, exist_ok=True)
    file = chosen.out / "points.json"
    points: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    for epochs in sorted(chosen.epochs):
        for method in chosen.methods:
            found = points.setdefault(method, {})
            if str(epochs) in found or (found and not takes_steps(method)):
                continue
            found[str(epochs)] = accuracy_of(chosen, method, epochs)
            print(f"{method}: {found[str(epochs)]} % with {epochs} epochs", file=sys.stderr)
            file.write_text(json.dumps(points, indent=1))
    rows = len(work.cifar_tasks(chosen.shared, 1)[0].train)
    steps = {str(epochs): epochs * -(-rows // BATCH) for epochs in sorted(chosen.epochs)}
    print(f"| Method | {' | '.join(f'{count} steps' for count in steps.values())} |\n|---|{'--:|' * len(steps)}")
    for method, found in points.items():
        cells = [f"{found[epochs]:.1f}" if epochs in found else "" for epochs in steps]
        print(f"| `{method}` | {' | '.join(cells)} |")
    picture(points, steps, chosen.picture or chosen.out / "prompt-steps.png")


if __name__ == "__main__":
    main()
