"""Packing: LoRA on short instructions, texts in shared rows against one padded text a row; one JSON line.

    python benchmarks/packing.py ../shared
    python benchmarks/packing.py ../shared --grouped                  # batches of similar length, which hold little padding

stories260k, a tiny Llama, learns to repeat words in order: prompts of 2 to 40 words and answers of 1 to 12. The two sides
take the same steps on the same batches, each in its own process, in turn. `faster` is the ratio of tokens per second, and
`share` that of the positions that go through the model; the mean losses of the last epoch stand beside each other.
"""

import argparse
import json
from pathlib import Path
from statistics import median

import numpy as np

import pairs

WORDS = (
    "the",
    "cat",
    "red",
    "ball",
    "park",
    "Lily",
    "mom",
    "big",
    "tree",
    "happy",
    "play",
    "sun",
    "dog",
    "house",
    "run",
)
SIDES = ("padded", "packed")


def instructions(count: int):
    """A task of texts with most of them short and a few long, as instructions are."""
    from contune import Task
    from contune.stream.conversation import Conversation, Message, language_examples

    draw = np.random.default_rng(0)
    found = []
    for _ in range(count):
        words = draw.choice(WORDS, int(np.clip(draw.lognormal(2.0, 0.7), 2, 40)))
        take = min(len(words), int(draw.integers(1, 13)))
        asked = f"Say the first {take} words of this: {' '.join(words)}."
        found.append(Conversation((Message("user", asked),), (" ".join(words[:take]),)))
    examples = language_examples(found, range(count))
    return Task("words", ("answer",), examples, examples.take(np.arange(1)))


def measure(chosen: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of the gradient steps, positions computed, and the mean loss of the last epoch."""
    from contune import Learner

    train = {"epochs": chosen.epochs, "batch_size": chosen.batch_size, "lr": 5e-3, "group_by_length": chosen.grouped}
    model = str(chosen.shared / "weights" / "stories260k_llama")
    learner = Learner(model, "lora", objective="write", train={**train, "packing": chosen.side == "packed"})
    context, positions, losses = learner.begin(instructions(chosen.texts)), [0], []

    def count(_, args) -> None:
        positions[0] += args[0].shape[0] * args[0].shape[1]

    learner.backbone.layers[0].register_forward_pre_hook(count)
    pairs.use_clock(chosen.clock)
    started = pairs.now()
    learner.fit(context, lambda report: losses.append(report.loss))
    seconds = pairs.now() - started
    tokens = chosen.epochs * int(context.task.data.prepared.lengths.sum())
    loss = float(np.mean(losses[-len(losses) // chosen.epochs :]))
    return {"tokens_per_second": tokens / seconds, "positions": positions[0], "tokens": tokens, "loss": loss}


def main() -> None:
    """Run both sides in turn and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes; medians are printed")
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--grouped", action="store_true", help="batches of similar length, the default of training")
    parser.add_argument("--threads", type=int, default=1, help="threads of each side")
    parser.add_argument("--clock", choices=pairs.CLOCKS, default="cpu", help="cpu: the process's own seconds")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        print(json.dumps(measure(chosen)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(chosen.rounds):
        for side, measured in found.items():
            measured.append(pairs.again("--side", side, threads=chosen.threads))
    padded, packed = ({key: median(run[key] for run in runs) for key in runs[0]} for runs in found.values())
    line = {
        "claim": f"packing, {chosen.texts} texts, batches of {chosen.batch_size}, grouped: {chosen.grouped}",
        "faster": round(packed["tokens_per_second"] / padded["tokens_per_second"], 3),
        "share": round(packed["positions"] / padded["positions"], 3),
        "loss_padded": round(padded["loss"], 6),
        "loss_packed": round(packed["loss"], 6),
        "tokens_per_second": [round(side["tokens_per_second"]) for side in (padded, packed)],
        "filled": [round(side["tokens"] / side["positions"], 3) for side in (padded, packed)],
        "threads": chosen.threads,
        "clock": chosen.clock,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
