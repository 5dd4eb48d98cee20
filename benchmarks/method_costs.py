"""What each method costs beside `lora`: processor time of training and evaluation for the same tasks, epochs and batches.

    python benchmarks/method_costs.py ../shared                       # every recipe, about half an hour on one core
    python benchmarks/method_costs.py ../shared --methods l2p slca --epochs 5

Every method runs in a process of its own with one thread: the first tasks of CIFAR-100 in ten, ViT-Tiny, LoRA in the upper
half of the layers where a recipe has one, all seen tasks evaluated after each. Its time is what the process's clock says, so
that other work on the machine matters little. One JSON line per method, dearest last.
"""

import argparse
import json
import sys
from pathlib import Path

import pairs
import work
from sweep import options, train_of


def measured(chosen: argparse.Namespace) -> dict[str, object]:
    """Seconds of one method, and what its ledger counted."""
    from contune import Learner
    from contune.backbone.config import ModelConfig
    from contune.method.catalog import build_method

    pairs.use_clock("cpu")
    model = ModelConfig(path=str(chosen.shared / work.VIT), image_size=chosen.image_size)
    method = build_method(chosen.method, options(chosen.method))
    train = train_of(chosen.method, {"epochs": chosen.epochs, "batch_size": 32})
    learner = Learner(model, method, train=train)
    tasks = work.cifar_tasks(chosen.shared, chosen.tasks)
    accuracy = work.run_contune(learner, tasks)
    ledger = learner.ledger
    passed = {"forward": ledger.examples_forward, "backward": ledger.examples_backward, "kept": ledger.cache_hits}
    return {"method": chosen.method, **pairs.phases(), **passed, "accuracy": round(accuracy, 3)}


def main() -> None:
    """Measure the methods one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("--methods", nargs="*", help="recipes; every one that learns classes otherwise")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="a table of the ratios instead of JSON lines")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.method:
        print(json.dumps(measured(chosen)))
        return
    from contune.method.catalog import class_recipes

    found = []
    wanted = chosen.methods or [name for name in class_recipes() if name != "joint"]
    for method in dict.fromkeys(["lora", *wanted]):
        found.append(pairs.again("--method", method, threads=1))
        print(f"{method}: {found[-1]['seconds_train']} s", file=sys.stderr)
    if chosen.table:
        print("| Method | training | evaluation |\n|---|--:|--:|")
    for each in sorted(found, key=lambda each: each["seconds_train"]):
        train, evaluate = (round(each[key] / found[0][key], 2) for key in ("seconds_train", "seconds_evaluate"))
        row = f"| `{each['method']}` | {train:.1f} | {evaluate:.1f} |"
        print(row if chosen.table else json.dumps({**each, "train_to_lora": train, "evaluate_to_lora": evaluate}))


if __name__ == "__main__":
    main()
