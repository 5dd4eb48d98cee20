"""What bf16 does to accuracy: the same runs in both precisions, paired by class order; resumable.

    python benchmarks/precision.py ../shared runs/precision                 # CLINC150 with MiniLM, ten tasks, three orders
    python benchmarks/precision.py ../shared runs/precision --only cifar100 --methods nmc ranpac:small

Streams and settings are those of results.py. One JSON line per stream and method: last accuracy in percent in either
precision as mean over the orders, the mean paired difference (bf16 less float32) with its sample standard deviation, and the
ratio of the processes' training seconds, which says little where the processor has no bf16 instructions.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

from runs import run_one
from sweep import config_of, streams, train_of


def main() -> None:
    """Run what is missing and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("out", type=Path, help="the folder for the runs")
    parser.add_argument("--only", nargs="*", default=["clinc150"])
    parser.add_argument("--methods", nargs="*", default=["nmc", "ranpac:small", "er", "joint"])
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--per-class", type=int, default=40)
    chosen = parser.parse_args()
    benchmarks = streams(chosen.shared, chosen.out, chosen.only, chosen.image_size, chosen.per_class)
    for name in chosen.only:
        for method in chosen.methods:
            found: dict[str, list[dict[str, float]]] = {"fp32": [], "bf16": []}
            for order in range(chosen.orders):
                for precision, results in found.items():
                    train = train_of(method, {"epochs": chosen.epochs, "batch_size": 32})
                    train |= {"precision": precision, "seed": order}
                    config = config_of(benchmarks[name], method, order, train, chosen.out)
                    out = chosen.out / name / f"{method.replace(':', '-')}-{precision}-order{order}"
                    run_one(config, out)
                    read = json.loads((out / "results.json").read_text())
                    seconds = read["cost"]["train_seconds"]
                    results.append({"last": 100 * read["metrics"]["last_accuracy"], "seconds": seconds})
            print(json.dumps({"stream": name, "method": method, **compared(found)}), flush=True)


def compared(found: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Means of both precisions and the paired difference.

    >>> rows = [{"last": 90.0, "seconds": 2.0}, {"last": 92.0, "seconds": 2.0}]
    >>> compared({"fp32": rows, "bf16": [{"last": 89.0, "seconds": 1.0}, {"last": 93.0, "seconds": 1.0}]})["difference"]
    0.0
    """
    pairs = list(zip(found["fp32"], found["bf16"], strict=True))
    differences = [low["last"] - full["last"] for full, low in pairs]
    last = {precision: round(mean(run["last"] for run in runs), 2) for precision, runs in found.items()}
    spread = round(stdev(differences), 2) if len(differences) > 1 else 0.0
    seconds = {precision: sum(run["seconds"] for run in runs) for precision, runs in found.items()}
    faster = round(seconds["fp32"] / seconds["bf16"], 2) if seconds["bf16"] else 0.0
    return {**last, "difference": round(mean(differences), 2), "spread": spread, "faster": faster}


if __name__ == "__main__":
    main()
