"""LoRA in all layers: time and peak memory of contune against a plain PyTorch loop on the same work.

    python benchmarks/lora.py ../shared                     # ViT-Tiny at 224 pixels, two tasks of CIFAR-100, one epoch
    python benchmarks/lora.py ../shared --image-size 112 --rounds 3

Both sides decode, resize, train and evaluate the same images, each in its own process, alternating. Prints one JSON line:
the ratio of seconds (plain / contune; above 1 contune is faster) and of the largest resident sets (contune / plain), the
medians, and both accuracies on the last task.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median


def tasks(shared: Path):
    """The first two of ten tasks of CIFAR-100."""
    from contune import StreamConfig, load_stream

    data = {split: str(shared / "data" / "cifar100" / f"{split}.parquet") for split in ("train", "test")}
    return load_stream(StreamConfig(data=data, tasks=10)).tasks[:2]


def with_contune(shared: Path, size: int) -> float:
    """Learn with contune; accuracy on the last task."""
    import numpy as np

    from contune import Learner
    from contune.backbone.config import ModelConfig

    train = {"epochs": 1, "batch_size": 32, "lr": 2e-3, "augment": False}
    model = ModelConfig(path=str(shared / "weights" / "vit_tiny_patch16_224"), image_size=size)
    learner = Learner(model, "lora", train=train)
    for task in tasks(shared):
        learner.learn(task)
        data = learner.test_dataset(task)
        accuracy = float(np.mean(learner.answers(data) == data.labels))
    return accuracy


def plain(shared: Path, size: int) -> float:
    """The loop one would write by hand with transformers and peft; accuracy on the last task."""
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from PIL import Image
    from torch.nn import functional
    from transformers import AutoModel

    folder = shared / "weights" / "vit_tiny_patch16_224"
    kept = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(kept[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))

    def pixels(images):
        resized = [torch.from_numpy(np.array(Image.fromarray(i).resize((size, size), 3))) for i in images]
        return (torch.stack(resized).permute(0, 3, 1, 2).float() / 255 - mean) / std

    base = AutoModel.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=targets(base)))
    options = {"interpolate_pos_encoding": size != base.config.image_size}
    seen, head = 0, None
    for task in tasks(shared):
        grown = torch.nn.Linear(base.config.hidden_size, seen + len(task.class_names))
        if head is not None:
            grown.weight.data[:seen], grown.bias.data[:seen] = head.weight.data, head.bias.data
        head = grown
        trained = [p for p in [*model.parameters(), *head.parameters()] if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=2e-3)
        for rows in torch.randperm(len(task.train)).split(32):
            features = model(pixel_values=pixels([task.train.inputs[i] for i in rows]), **options).last_hidden_state[
                :, 0
            ]
            loss = functional.cross_entropy(head(features), torch.from_numpy(task.train.labels)[rows] + seen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right = 0
        with torch.no_grad():
            for rows in torch.arange(len(task.test)).split(64):
                features = model(pixel_values=pixels([task.test.inputs[i] for i in rows]), **options).last_hidden_state[
                    :, 0
                ]
                right += (head(features).argmax(1) == torch.from_numpy(task.test.labels)[rows] + seen).sum().item()
        seen += len(task.class_names)
        accuracy = right / len(task.test)
    return accuracy


def targets(model) -> list[str]:
    """Names of the query and value projections."""
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    return [name for name in ("query", "value", "q_proj", "v_proj") if name in names]


def main() -> None:
    """Run both sides, each in its own process, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--side", choices=["contune", "plain"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        started = time.perf_counter()
        accuracy = (with_contune if chosen.side == "contune" else plain)(chosen.shared, chosen.image_size)
        seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": round(seconds, 1), "peak_mb": round(peak), "accuracy": round(accuracy, 4)}))
        return
    found: dict[str, list[dict[str, float]]] = {"plain": [], "contune": []}
    for _ in range(chosen.rounds):
        for side, measured in found.items():
            command = [
                sys.executable,
                __file__,
                str(chosen.shared),
                "--side",
                side,
                "--image-size",
                str(chosen.image_size),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            measured.append(json.loads(done.stdout.splitlines()[-1]))
    plain_side, contune_side = ({k: median(m[k] for m in ms) for k in ms[0]} for ms in found.values())
    ratios = {
        "faster": round(plain_side["seconds"] / contune_side["seconds"], 3),
        "memory": round(contune_side["peak_mb"] / plain_side["peak_mb"], 3),
    }
    claim = f"lora in all layers, ViT-Tiny at {chosen.image_size}, {torch_threads()} threads"
    print(json.dumps({"claim": claim, **ratios, "plain": plain_side, "contune": contune_side}))


def torch_threads() -> int:
    """How many threads both sides use."""
    import torch

    return torch.get_num_threads()


if __name__ == "__main__":
    main()
