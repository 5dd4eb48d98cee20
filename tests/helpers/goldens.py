"""Goldens: what a recipe's check run gave, in full precision, and the comparison with what it gives now.

A file per recipe holds, for every setting, the loss of every step, the scores, a hash of the final state with the norm
of each of its tensors, and the norms of the features and scores of fixed test examples, row by row. Where the file was
written by the same processor and torch (`reference`), all of it is compared to the bit. Elsewhere float32 rounds
otherwise: there a number may be 1e-6 away (a tensor's norm 1e-5), or as far as `elsewhere` says: four times as far as it
moved when the reference itself computed with its oldest instructions.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contune.checks.run import CheckRun, checked_run
from contune.checks.setting import Setting, settings
from contune.checks.sizes import checked_method
from contune.method.catalog import recipes

FOLDER = Path(__file__).parents[1] / "checks" / "goldens"
FEW = {  # settings where a few recipes alone have a golden
    "texts": ("coda-prompt", "conpet-dynamic", "ease", "er", "finetune", "l2p", "lora", "ranpac", "slca"),
    "multi-label": ("er", "ewc", "lora", "ranpac"),
    "regress": ("er", "ewc", "lora", "ranpac"),
    "tag": ("er", "ewc", "lora", "lwf"),
}
OLDEST = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
FEWEST, FEWEST_NORM = 1e-6, 1e-5  # relative differences that are always allowed elsewhere
MARGIN = 4.0  # how many times the measured difference is allowed
FREE = 0.1  # a tensor that moves by this much is rounding alone, such as the bias of a key, and its norm says nothing
ROWS = range(8)  # of the first and of the last task's test examples
Golden = dict[str, Any]


@cache
def reference() -> str:
    """A fingerprint of what decides the last bits: the processor, how it may be used, and the libraries."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "cache size", "flags", "Features", "CPU part")
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.is_file() else [platform.processor()]
    found = sorted(line for line in lines if line.split("\t")[0].strip() in wanted)
    found += [platform.machine(), torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads())]
    found += [f"{name}={os.environ.get(name, '')}" for name in OLDEST]
    found += [f"{name}={version(name)}" for name in ("torch", "transformers", "peft", "numpy")]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:12]


def settings_of(name: str) -> list[Setting]:
    """Where a recipe has a golden: everywhere that takes it, but for the settings of `FEW`."""
    method = partial(checked_method, name)
    taken = [setting for setting in settings().values() if setting.refusal(method()) is None]
    return [setting for setting in taken if name in FEW.get(setting.name, (name,))]


def measured(trial: CheckRun) -> Golden:
    """What a golden holds of one check run."""
    tensors = dict(sorted(trial.learner.state().tensors.items()))
    outputs = outputs_of(trial)
    return {
        "losses": trial.losses,
        "scores": trial.scores,
        "state": tensors_hash(tensors),
        "norms": {name: norm(tensor) for name, tensor in tensors.items()},
        **{name: [norm(row) for row in rows] for name, rows in outputs.items()},
    }


def outputs_of(trial: CheckRun) -> dict[str, Tensor]:
    """Features and finite scores of a few test examples of the first and of the last task."""
    found: dict[str, list[Tensor]] = {}
    tasks = trial.setting.tasks()
    for task in (tasks[0], tasks[-1]):
        data = trial.learner.test_dataset(type(task)(task.name, task.class_names, task.train, task.test.take(ROWS)))
        for name, rows in trial.setting.outputs(trial.learner.reading(data), data).items():
            found.setdefault(name, []).append(rows)
    return {f"{name} of tests": torch.cat(rows) for name, rows in found.items()}


def norm(tensor: Tensor) -> float:
    """The norm of what is finite in a tensor, in double precision."""
    values = tensor.detach().cpu().double()
    return float(values.masked_fill(~values.isfinite(), 0.0).norm())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 of tensors by their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def numbers(golden: Golden) -> dict[str, list[float]]:
    """The numbers of a golden by quantity; each tensor's norm is a quantity of its own."""
    plain = {name: value for name, value in golden.items() if isinstance(value, list)}
    return plain | {f"norm of {name}": [value] for name, value in golden["norms"].items()}


def apart(first: Iterable[float], second: Iterable[float]) -> float:
    """The largest relative difference; infinite where there are not as many."""
    one, two = list(first), list(second)
    if len(one) != len(two):
        return float("inf")
    return max((abs(a - b) / max(abs(a), abs(b), 1e-9) for a, b in zip(one, two, strict=True)), default=0.0)


def fewest(name: str) -> float:
    """What a quantity may always be away elsewhere."""
    return FEWEST_NORM if name.startswith("norm of ") else FEWEST


def allowances(here: Golden, otherwise: Golden) -> dict[str, float]:
    """How far quantities may be elsewhere where the `fewest` is too little, from the same run in other arithmetic."""
    other, found = numbers(otherwise), {}
    for name, values in numbers(here).items():
        moved = MARGIN * apart(values, other[name])
        if moved > fewest(name):
            found[name] = float(f"{moved:.1e}")
    return found


def differences(kept: Golden, found: Golden, *, exact: bool) -> list[str]:
    """Where a run differs from its golden; `exact` asks for every bit."""
    if exact:
        return [name for name in kept if name != "elsewhere" and kept[name] != found.get(name)]
    one, two = numbers(kept), numbers(found)
    if one.keys() != two.keys():
        return [f"there are other numbers: {sorted(one.keys() ^ two.keys())[:2]}"]
    wrong = []
    for name, values in one.items():
        allowed = kept["elsewhere"].get(name, fewest(name))
        distance = apart(values, two[name])
        if distance > allowed and not (allowed >= FREE and name.startswith("norm")):
            wrong.append(f"{name}: {distance:.1e} apart, {allowed:.1e} is allowed")
    return wrong


def golden_of(name: str) -> Golden:
    """The file of a recipe."""
    file = FOLDER / f"{name}.json"
    assert file.is_file(), f"no golden of {name} yet: python tests/checks/test_goldens.py {name}"
    golden: Golden = json.loads(file.read_text())
    return golden


def kept_settings() -> list[tuple[str, str]]:
    """Every recipe with each setting it has a golden in, read from the files."""
    files = {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}
    return [(name, setting) for name, golden in files.items() for setting in golden if setting != "reference"]


def assert_as_kept(name: str, trial: CheckRun) -> None:
    """The check run gives what the golden holds; the common checks of every recipe ask this of theirs."""
    golden = golden_of(name)
    exact = golden["reference"] == reference()
    found = differences(golden[trial.setting.name], measured(trial), exact=exact)
    assert found == [], (
        f"{name} on {trial.setting.name}, compared {'to the bit' if exact else 'elsewhere'}: {found[:5]}"
    )


def measure_all(names: Iterable[str]) -> dict[str, dict[str, Golden]]:
    """What these recipes give here, by recipe and setting."""
    return {
        name: {
            setting.name: measured(checked_run(partial(checked_method, name), setting)) for setting in settings_of(name)
        }
        for name in names
    }


def write_goldens(names: Iterable[str]) -> None:
    """Write the goldens of these recipes, or of all; a second process measures how far other arithmetic moves them."""
    chosen = list(names) or list(recipes())
    command = [sys.executable, str(FOLDER.parent / "test_goldens.py"), "--measure", *chosen]
    with subprocess.Popen(command, env=os.environ | OLDEST, stdout=subprocess.PIPE, text=True) as other:
        here = measure_all(chosen)
        assert other.stdout is not None
        otherwise = json.loads(other.stdout.read().splitlines()[-1])
    FOLDER.mkdir(exist_ok=True)
    for name, found in here.items():
        for setting, golden in found.items():
            golden["elsewhere"] = allowances(golden, otherwise[name][setting])
        (FOLDER / f"{name}.json").write_text(lines_of({"reference": reference(), **found}) + "\n")


def lines_of(value: Any, depth: int = 0) -> str:
    """JSON with a line for each entry of a mapping, and each list on one line."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    inner = [f"{' ' * (depth + 1)}{json.dumps(key)}: {lines_of(each, depth + 1)}" for key, each in value.items()]
    return "{\n" + ",\n".join(inner) + "\n" + " " * depth + "}"
