"""What contune gets out of a device: images and tokens a second, beside what the device itself can do; a table.

    python benchmarks/device.py ../shared                                   # a CUDA device, bf16, full size
    python benchmarks/device.py ../shared --device cpu --small              # a minute on a processor, to try the script

A ViT of B/16 shape at 224 pixels and a Llama of 0.76 billion weights, both with random weights, which run as fast as trained
ones. The device's copy bandwidth and the speed of a matrix product are measured in the same run; a line's share is its
operations (counted by PyTorch's FlopCounterMode) over that product's. Lines of images start with decoded pixels: resizing is
in them, and the reader alone has a line of its own, the limit of all others. `ranpac` (form small) learns from features that
are kept, so that its time is the solver's. Texts are pieces of plays; the other side of the last line is
`transformers.Trainer` with `peft`, the model in the same precision, batches of the same size, on the same tokens.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import lora_tokens


@dataclass(frozen=True)
class Sizes:
    """How large models and data are."""

    vit: dict[str, int]
    llama: dict[str, int]
    batch: int
    images: int
    texts: int
    random_features: int
    product: int
    copy_mb: int


LLAMA = {"num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 5632, "head_dim": 128}
FULL = Sizes(
    vit={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    llama={**LLAMA, "num_attention_heads": 16, "num_key_value_heads": 8},
    batch=128,
    images=2560,
    texts=1000,
    random_features=10_000,
    product=8192,
    copy_mb=2048,
)
SMALL = Sizes(
    vit={"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128},
    llama={"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    | {"num_attention_heads": 4, "num_key_value_heads": 2},
    batch=16,
    images=80,
    texts=60,
    random_features=500,
    product=512,
    copy_mb=64,
)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes until the device has done what it asked for."""
    wait(device)
    started = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peaks(chosen: argparse.Namespace, sizes: Sizes) -> tuple[float, float]:
    """Bytes a second of a copy (read and written) and operations a second of a square matrix product; the best of ten."""
    device, dtype = chosen.device, torch.bfloat16 if chosen.precision == "bf16" else torch.float32
    source = torch.empty(sizes.copy_mb * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(sizes.product, sizes.product, device=device).to(dtype) for _ in range(2))
    copying = min(seconds_of(lambda: target.copy_(source), device) for _ in range(10))
    product = min(seconds_of(lambda: left @ right, device) for _ in range(10))
    return 2 * source.nbytes / copying, 2 * sizes.product**3 / product


def image_task(number: int, count: int):
    """Ten new classes of noise, `count` images of 256 x 256 to train on and as many to test."""
    from contune import Examples, Task

    draw = np.random.default_rng(number)

    def split(first: int) -> Examples:
        images = list(draw.integers(0, 256, (count, 256, 256, 3), dtype=np.uint8))
        return Examples(images, np.arange(count) % 10, np.arange(first, first + count), "image")

    return Task(f"task {number}", tuple(f"{number} {letter}" for letter in "abcdefghij"), split(0), split(count))


def image_lines(chosen: argparse.Namespace, sizes: Sizes, folder: Path, peak: float) -> list[dict[str, object]]:
    """Images a second: the reader, features, two methods that train, and the seconds of a closed-form solver."""
    from contune import Learner
    from contune.checks.run import random_vit
    from contune.contract.settings import CacheSettings

    path = random_vit(folder / "vit", image_size=32 if chosen.small else 224, **sizes.vit)
    train = {"epochs": 1, "batch_size": sizes.batch, "precision": chosen.precision}
    few, many = image_task(0, sizes.batch), image_task(1, sizes.images)
    make = partial(Learner, path, train=train, device=str(chosen.device))
    cache = CacheSettings(batch_size=sizes.batch)
    kept = CacheSettings(batch_size=sizes.batch, folder=str(folder / "cache"))
    lines: list[dict[str, object]] = []

    def add(name: str, call: Callable[[object], object]) -> None:
        with FlopCounterMode(display=False) as counter:
            call(few)
        rate = sizes.images / seconds_of(lambda: call(many), chosen.device)
        operations = counter.get_total_flops() / sizes.batch
        lines.append({"line": name, "per_second": rate, "unit": "images", "share": rate * operations / peak})

    reader = make("nmc", cache=cache).backbone
    rows = np.arange(sizes.images)
    batches = np.array_split(rows, -(-len(rows) // sizes.batch))
    prepared = reader.prepare(many.train.inputs)
    reading = seconds_of(lambda: [reader.collate([(prepared, part)]) for part in batches], chosen.device)
    lines.append({"line": "reader alone", "per_second": sizes.images / reading, "unit": "images"})
    for method in ("nmc", "lora", "coda-prompt"):
        learner = make(method, cache=kept if method == "nmc" else cache)
        add({"nmc": "features (nmc)"}.get(method, f"{method}, training"), learner.learn)
    solver = make("ranpac", cache=kept, form="small", random_features=sizes.random_features)
    solver.learn(few)
    taken = seconds_of(lambda: solver.learn(many), chosen.device)
    lines.append({"line": f"ranpac, {sizes.random_features} random features, kept features", "seconds": taken})
    return lines


def token_lines(chosen: argparse.Namespace, sizes: Sizes, folder: Path) -> list[dict[str, object]]:
    """Tokens a second of LoRA on a Llama, by contune and by Trainer; the steps alone are timed, after a first few."""
    path = lora_tokens.random_llama(chosen.shared, folder / "llama", sizes.llama)
    options = argparse.Namespace(shared=chosen.shared, answers=False, texts=sizes.texts)
    texts = lora_tokens.conversations(options)[0]
    tokens, ours = tokens_of_contune(chosen, path, texts)
    theirs = tokens / seconds_of_trainer(chosen, path, texts)
    lines = [("lora on a Llama", ours), ("the same by Trainer and peft", theirs)]
    return [{"line": name, "per_second": rate, "unit": "tokens"} for name, rate in lines]


def tokens_of_contune(chosen: argparse.Namespace, path: Path, texts: list) -> tuple[int, float]:
    """Tokens of the texts, and tokens a second of learning them."""
    from contune import Learner, Task
    from contune.backbone.config import ModelConfig
    from contune.stream.conversation import language_examples

    train = {**lora_tokens.TRAIN, "epochs": 1, "precision": chosen.precision, "group_by_length": False}
    model = ModelConfig(path=str(path), max_length=lora_tokens.TOKENS)
    learner = Learner(model, "lora", objective="write", train=train, device=str(chosen.device))

    def fit(part: list) -> tuple[int, float]:
        examples = language_examples(part, range(len(part)))
        context = learner.begin(Task(f"{len(part)} texts", ("answer",), examples, examples.take([0])))
        taken = seconds_of(lambda: learner.fit(context, lambda report: None), chosen.device)
        tokens = int(context.task.data.prepared.lengths.sum())
        learner.end(context)
        return tokens, taken

    fit(texts[: 2 * lora_tokens.TRAIN["batch_size"]])
    tokens, taken = fit(texts)
    return tokens, tokens / taken


def seconds_of_trainer(chosen: argparse.Namespace, path: Path, texts: list) -> float:
    """Seconds of the same steps by Trainer, after a first few."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        LlamaForCausalLM,
        Trainer,
        TrainingArguments,
    )

    half, batch = chosen.precision == "bf16", lora_tokens.TRAIN["batch_size"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = [{"input_ids": tokenizer(one.answer)["input_ids"][: lora_tokens.TOKENS]} for one in texts]
    base = LlamaForCausalLM.from_pretrained(path, dtype=torch.bfloat16 if half else torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model, collator = get_peft_model(base, config), DataCollatorForLanguageModeling(tokenizer, mlm=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=batch,
            learning_rate=lora_tokens.TRAIN["lr"],
            lr_scheduler_type="constant",
            max_grad_norm=0.0,  # none, as in lora_tokens.TRAIN
            bf16=half,
            use_cpu=chosen.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=rows[: 2 * batch], data_collator=collator).train()
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator)
        return seconds_of(trainer.train, chosen.device)


def table(lines: list[dict[str, object]]) -> str:
    """The lines for people.

    >>> print(table([{"line": "a", "per_second": 12.34, "unit": "images", "share": 0.5}, {"line": "b", "seconds": 2.0}]))
    | what | speed | share of the product's peak |
    |---|--:|--:|
    | a | 12.3 images/s | 50.0% |
    | b | 2.00 s | |
    """
    rows = ["| what | speed | share of the product's peak |", "|---|--:|--:|"]
    for line in lines:
        speed = f"{line['per_second']:,.1f} {line['unit']}/s" if "unit" in line else f"{line['seconds']:.2f} s"
        share = f"{line['share']:.1%} " if "share" in line else ""
        rows.append(f"| {line['line']} | {speed} | {share}|")
    return "\n".join(rows)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--small", action="store_true", help="tiny models and data, which say nothing about speed")
    chosen = parser.parse_args()
    sizes = SMALL if chosen.small else FULL
    copied, product = peaks(chosen, sizes)
    name = torch.cuda.get_device_name(chosen.device) if chosen.device.type == "cuda" else str(chosen.device)
    print(f"{name}, {chosen.precision}: copies {copied / 1e9:,.0f} GB/s, products {product / 1e12:,.1f} TFLOP/s\n")
    with tempfile.TemporaryDirectory() as folder:
        lines = image_lines(chosen, sizes, Path(folder), product) + token_lines(chosen, sizes, Path(folder))
    print(table(lines))


if __name__ == "__main__":
    main()
