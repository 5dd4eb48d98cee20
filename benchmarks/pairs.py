"""Two ways of the same work, each in its own process, in turn; one JSON line with ratios and both accuracies.

A script defines `plain(chosen)` and `with_contune(chosen)`, which do the work and give an accuracy, and calls `main`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

Side = Callable[[argparse.Namespace], float]
Add = Callable[[argparse.ArgumentParser], None]


def main(text: str, claim: str, plain: Side, with_contune: Side, add: Add = lambda parser: None) -> None:
    """Run both sides `--rounds` times, alternating, and print the line."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of processes; medians are printed")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side")
    parser.add_argument("--side", choices=["contune", "plain"], help=argparse.SUPPRESS)
    add(parser)
    chosen = parser.parse_args()
    if chosen.side:
        measure(with_contune if chosen.side == "contune" else plain, chosen)
        return
    found: dict[str, list[dict[str, float]]] = {"plain": [], "contune": []}
    environment = {**os.environ, "OMP_NUM_THREADS": str(chosen.threads), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    for _ in range(chosen.rounds):
        for side, measured in found.items():
            command = [sys.executable, sys.argv[0], *sys.argv[1:], "--side", side]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            measured.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {side: {key: median(each[key] for each in runs) for key in runs[0]} for side, runs in found.items()}
    ratios = {
        "faster": round(medians["plain"]["seconds"] / medians["contune"]["seconds"], 3),
        "memory": round(medians["contune"]["peak_mb"] / medians["plain"]["peak_mb"], 3),
    }
    print(json.dumps({"claim": claim.format(**vars(chosen)), "threads": chosen.threads, **ratios, **medians}))


_taken_out: list[float] = []


def untimed(seconds: float) -> None:
    """Take the preparation of a side out of its time."""
    _taken_out.append(seconds)


def measure(side: Side, chosen: argparse.Namespace) -> None:
    """One side's seconds after its imports, largest resident set and accuracy, as JSON."""
    import peft
    import transformers

    import contune.engine.learner

    del peft, transformers
    assert contune.engine.learner
    started = time.perf_counter()
    accuracy = side(chosen)
    seconds, peak = (
        time.perf_counter() - started - sum(_taken_out),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
    print(json.dumps({"seconds": round(seconds, 2), "peak_mb": round(peak), "accuracy": round(accuracy, 4)}))
