"""One pass of images through the model at evaluation, by contune and by the plain loops, in turn within one process.

    python benchmarks/passes.py ../shared                             # ViT-Tiny at 224 pixels
    python benchmarks/passes.py ../shared --image-size 112 --threads 1 --clock cpu

The other scripts time whole streams, and on a shared machine its own speed moves more than the two sides differ. Here a
pass of one side follows the other's at once, from images to answers: frozen features (`nmc`), prefixes in five layers
(`dualprompt`) and 25 prompts at the input (`l2p`), the last two with their queries at hand. One JSON line each: median
milliseconds of an image, and the median over the rounds of plain over contune. Near 1 the streams differ by the passes
that are spared and by nothing else. Frozen features are computed label by label, six images at a time here.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

import pairs
import work
from contune import Task

IMAGES, TRAINED = 64, 20


def contune_answers(chosen: argparse.Namespace, method: str, task: Task) -> Callable[[], object]:
    """Answers for the task's test images; what is kept of them is kept already, but their features are not."""
    from contune import Learner
    from contune.backbone.config import ModelConfig
    from contune.contract.settings import CacheSettings

    model = ModelConfig(path=str(chosen.shared / work.VIT), image_size=chosen.image_size)
    cache = CacheSettings(features=method != "nmc", batch_size=IMAGES)
    learner = Learner(model, method, train={"epochs": 0 if method == "nmc" else 1, "batch_size": TRAINED}, cache=cache)
    learner.learn(task)
    data = learner.test_dataset(task)
    learner.answers(data)
    return lambda: learner.answers(data)


def plain_answers(chosen: argparse.Namespace, method: str, task: Task) -> Callable[[], object]:
    """The same by hand, with prompts and a head of no meaning but the right size."""
    vit = work.PlainVit(chosen.shared, chosen.image_size)
    head = torch.randn(vit.width, len(task.class_names))
    several = {
        "nmc": {},
        "dualprompt": {"prefixes": {layer: 2 * (torch.randn(IMAGES, 5, vit.width),) for layer in range(5)}},
        "l2p": {"prompts": torch.randn(IMAGES, 25, vit.width)},
    }[method]

    def answers() -> object:
        with torch.no_grad():
            return (vit(vit.read(list(task.test.inputs)), **several)[:, 0] @ head).argmax(1)

    return answers


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes, by the chosen clock."""
    started = pairs.now()
    call()
    return pairs.now() - started


def main() -> None:
    """Time both sides in turn and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice otherwise")
    parser.add_argument("--clock", choices=pairs.CLOCKS, default="wall", help="cpu: for one thread on a busy machine")
    chosen = parser.parse_args()
    pairs.use_clock(chosen.clock)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    whole = work.cifar_tasks(chosen.shared, 1)[0]
    few = whole.train.take(np.arange(TRAINED)), whole.test.take(np.arange(IMAGES))
    task = Task(whole.name, whole.class_names, *few)
    for method in ("nmc", "dualprompt", "l2p"):
        sides = plain_answers(chosen, method, task), contune_answers(chosen, method, task)
        found = [(seconds(sides[0]), seconds(sides[1])) for _ in range(chosen.rounds)]
        plain, contune = (median(pair[side] for pair in found) * 1000 / IMAGES for side in (0, 1))
        ratio = median(plain_one / contune_one for plain_one, contune_one in found)
        setting = {"pass": method, "image_size": chosen.image_size, "threads": torch.get_num_threads()}
        print(
            json.dumps(
                {**setting, "plain_ms": round(plain, 2), "contune_ms": round(contune, 2), "faster": round(ratio, 3)}
            )
        )


if __name__ == "__main__":
    main()
