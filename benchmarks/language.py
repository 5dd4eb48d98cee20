"""Language results: what methods learn of new text, and what they keep of what the model knew; resumable.

    python benchmarks/language.py ../shared runs/language                  # all methods, three seeds
    python benchmarks/language.py ../shared runs/language --methods lora er --seeds 1

stories260k, a tiny Llama that knows children's stories, reads three plain-text domains one after the other: plays,
technical proposals and abstracts of medicine. After each domain the loss on all of them is measured, and on a probe: stories
that the untouched model itself has written. Learning accuracy stands beside forgetting, since a method that learns little
forgets little. The table of docs/language-results.md is replaced.
"""

import argparse
import json
from pathlib import Path

from runs import run_one

METHODS = ["finetune", "lora", "er", "l2", "ewc", "lwf", "o-lora", "gpm", "osf", "migu", "hft", "i-lora"]
METHODS += ["freeze", "corda", "lcia", "slm", "sapt"]
FULL = ("finetune", "gpm", "osf", "hft", "freeze")  # train the model's own weights, at a hundredth of train.lr
DOMAINS = {"plays": "shakespeare", "proposals": "peps", "medicine": "pubmed_abstracts"}
STORIES, TOKENS = 40, 160


def write_stories(model: Path, file: Path) -> None:
    """Texts that the untouched model writes, drawn at temperature 1 with a fixed seed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, writer = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(0)
    start = torch.full((STORIES, 1), tokenizer.bos_token_id)
    found = writer.generate(start, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=TOKENS)
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in found]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n\n".join(text for text in texts if text))


def config_of(shared: Path, stories: Path, method: str, seed: int, chosen: argparse.Namespace) -> dict[str, object]:
    """One run: the recipe's own settings, the same number of steps for all, and one rate for LoRA and one for weights."""
    data = {name: str(shared / "data" / "corpora" / f"{file}.txt.gz") for name, file in DOMAINS.items()}
    language = {"piece": 400, "test_examples": 100, "probes": {"stories": str(stories)}, "boundary": "\n\n\n"}
    train: dict[str, object] = {
        "epochs": chosen.epochs,
        "batch_size": 8,
        "seed": seed,
        "schedule": "cosine",
        "warmup": 0.05,
    }
    train["lr"] = 0.1 if method in FULL else 5e-3
    return {
        "model": {"path": str(shared / "weights" / "stories260k_llama")},
        "stream": {
            "objective": "write",
            "data": {"train": data},
            "order_seed": None,
            "per_class": chosen.pieces,
            "language": language,
        },
        "method": method,
        "train": train,
    }


def spread(values: list[float], digits: int) -> str:
    """Mean and sample standard deviation."""
    from contune.metric.estimate import estimate

    found = estimate(values)
    shown = f"{found.mean:.{digits}f}"
    return shown if found.deviation is None else f"{shown} ± {found.deviation:.{digits}f}"


def row(method: str, results: list[dict]) -> str:
    """One line of the table: losses right after learning and at the end, and what is left of the stories."""
    learned = [sum(loss_of(r)[i][i] for i in range(3)) / 3 for r in results]
    final = [sum(loss_of(r)[2]) / 3 for r in results]
    stories = [r["retention"]["stories"] for r in results]
    before = stories[0]["loss"][0]
    cells = [
        method,
        str(len(results)),
        spread(learned, 3),
        spread(final, 3),
        spread([s["loss"][-1] - before for s in stories], 3),
        spread([100 * s["changed_tokens"][-1] for s in stories], 1),
        spread([s["divergence"][-1] for s in stories], 3),
        f"{results[0]['cost']['trainable_parameters']:,}",
    ]
    return "| " + " | ".join(cells) + " |"


def write_page(out: Path, methods: list[str], page: Path) -> None:
    """Replace the table between the marks of the page."""
    lines = [
        "| Method | Seeds | Loss right after learning | Loss at the end | Stories: loss gained | Stories: tokens changed % "
        "| Stories: divergence | Trainable |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for method in methods:
        files = sorted(out.glob(f"{method}-seed*/results.json"))
        results = [found for file in files if (found := json.loads(file.read_text()))["finished"]]
        if results:
            lines.append(row(method, results))
    text = page.read_text() if page.exists() else "# Language results\n\n<!-- corpora -->\n<!-- end of corpora -->\n"
    before, after = text.split("<!-- corpora -->")[0], text.split("<!-- end of corpora -->")[1]
    table = "\n".join(lines)
    page.write_text(f"{before}<!-- corpora -->\n\n{table}\n\n<!-- end of corpora -->{after}")


def loss_of(results: dict) -> list[list[float]]:
    """The matrix of nats per token."""
    return next(one["matrix"] for one in results["measures"] if one["name"] == "loss")


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("out", type=Path, help="the folder for the runs")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--pieces", type=int, default=1000, help="pieces of 400 characters that each domain teaches")
    parser.add_argument("--page", type=Path, default=Path("docs/language-results.md"))
    chosen = parser.parse_args()
    stories = chosen.out.resolve() / "stories.txt"
    if not stories.exists():
        write_stories(chosen.shared / "weights" / "stories260k_llama", stories)
    for seed in range(chosen.seeds):
        for method in chosen.methods:
            config = config_of(chosen.shared.resolve(), stories, method, seed, chosen)
            run_one(config, chosen.out / f"{method}-seed{seed}")
            write_page(chosen.out, chosen.methods, chosen.page)


if __name__ == "__main__":
    main()
