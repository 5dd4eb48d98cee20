"""Started by torchrun: learn two small tasks at a vanishing rate and write down the gradient of every step."""

import sys
from pathlib import Path

from safetensors.torch import save_file

from contune.adapter.lora.peft_adapter import lora
from contune.checks.run import digit_tasks
from contune.cli.run import find_processes
from contune.contract.parts import Rule
from contune.engine.learner import Learner
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.replay.replay import Replay


class Recorder(Rule):
    """Keeps every step's gradients, as they are after the sum over the processes."""

    name = "recorder"

    def __init__(self) -> None:
        self.seen: dict = {}

    def gradients(self, context, gradients):
        step = len({name.split("|")[0] for name in self.seen})
        self.seen |= {f"{step}|{name}": gradient.clone() for name, gradient in gradients.items()}
        return gradients


def main(model: str, method: str, out: str) -> None:
    recorder, processes = Recorder(), find_processes()
    rules = (Replay(size=20, batch_size=7), recorder) if method == "er" else (recorder,)
    train = {"epochs": 1, "batch_size": 15, "lr": 1e-12, "optimizer": "sgd"}
    learner = Learner(model, Method(lora(rank=2), Linear(), rules), train=train, processes=processes)
    for task in digit_tasks()[:2]:
        learner.learn(task)
    if processes.main:
        save_file(recorder.seen, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
