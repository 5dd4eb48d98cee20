"""Two ways of the same work, each in its own process, in turn; one JSON line with ratios and both accuracies.

A script defines `plain(chosen)` and `with_contune(chosen)`, which do the work and give an accuracy, and calls `main`.
contune's side computes in `chosen.precision`; asked for two precisions, each gets a line, against the same plain side.
What a side does inside `phase(name)` is timed on its own as well, and every phase that both sides have gets its ratio.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

Side = Callable[[argparse.Namespace], float]
Add = Callable[[argparse.ArgumentParser], None]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main(text: str, claim: str, plain: Side, with_contune: Side, add: Add = lambda parser: None) -> None:
    """Run both sides `--rounds` times, alternating, and print a line for each precision of contune's side."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of processes; medians are printed")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: the process's own seconds, for --threads 1 on a busy machine",
    )
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        nargs="+",
        default=["fp32"],
        help="of contune's side, both for a line of each; the plain side is always float32",
    )
    parser.add_argument("--side", choices=["contune", "plain"], help=argparse.SUPPRESS)
    add(parser)
    chosen = parser.parse_args()
    if chosen.side:
        chosen.precision = chosen.precision[-1]
        measure(with_contune if chosen.side == "contune" else plain, chosen)
        return
    found: dict[str, list[dict[str, float]]] = {"plain": [], **{precision: [] for precision in chosen.precision}}
    for _ in range(chosen.rounds):
        for side, measured in found.items():
            flags = ["plain", "--precision", "fp32"] if side == "plain" else ["contune", "--precision", side]
            measured.append(again("--side", *flags, threads=chosen.threads))
    medians = {side: {key: median(each[key] for each in runs) for key in runs[0]} for side, runs in found.items()}
    setting = {"claim": claim.format(**vars(chosen)), "threads": chosen.threads, "clock": chosen.clock}
    for precision in chosen.precision:
        plain_way, ours = medians["plain"], medians[precision]
        line = {**setting, "precision": precision, **ratios_of(plain_way, ours), "plain": plain_way, "contune": ours}
        print(json.dumps(line))


def again(*flags: str, threads: int) -> dict[str, Any]:
    """Start this script once more with these flags added; what its last line says. Raises where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, *sys.argv, *flags]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratios_of(plain: dict[str, float], contune: dict[str, float]) -> dict[str, float]:
    """How many times faster contune is as a whole and in every phase, and its share of the plain side's memory.

    >>> ratios_of({"seconds": 3.0, "peak_mb": 2, "seconds_train": 2.0}, {"seconds": 2.0, "peak_mb": 1, "seconds_train": 1.0})
    {'faster': 1.5, 'faster_train': 2.0, 'memory': 0.5}
    """
    timed = [key for key in plain if key.startswith("seconds") and contune.get(key)]
    faster = {key.replace("seconds", "faster"): round(plain[key] / contune[key], 3) for key in timed}
    return {**faster, "memory": round(contune["peak_mb"] / plain["peak_mb"], 3)}


_phases: dict[str, float] = {}
_clock = "wall"


def use_clock(name: str) -> None:
    """Time what follows by one of `CLOCKS`."""
    global _clock
    _clock = name


def now() -> float:
    """Seconds by the clock of this measurement; only differences mean something."""
    return CLOCKS[_clock]()


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Add the block's seconds to a part of the work that has a name, such as `train` or `evaluate`."""
    started = now()
    try:
        yield
    finally:
        _phases[name] = _phases.get(name, 0.0) + now() - started


def phases() -> dict[str, float]:
    """Seconds of every phase so far."""
    return {f"seconds_{name}": round(value, 2) for name, value in _phases.items()}


_taken_out: list[float] = []


def untimed(seconds: float) -> None:
    """Take the preparation of a side out of its time."""
    _taken_out.append(seconds)


def measure(side: Side, chosen: argparse.Namespace) -> None:
    """One side's seconds after its imports, as a whole and by phase, largest resident set and accuracy, as JSON."""
    import peft
    import transformers

    import contune.engine.learner

    del peft, transformers
    assert contune.engine.learner
    use_clock(chosen.clock)
    started = now()
    accuracy = side(chosen)
    seconds, peak = (
        now() - started - sum(_taken_out),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
    print(
        json.dumps({"seconds": round(seconds, 2), **phases(), "peak_mb": round(peak), "accuracy": round(accuracy, 4)})
    )
