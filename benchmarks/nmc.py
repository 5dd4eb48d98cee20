"""Nearest class mean over a whole stream: contune reads every image once, the usual loop reads seen tasks again.

    python benchmarks/nmc.py ../shared --image-size 112

The plain side does what published code does: after every task the features of all test images of all seen tasks are
computed again. Both evaluate after each of ten tasks of CIFAR-100.
"""

import numpy as np
import torch
from torch.nn import functional

import pairs
import work


def with_contune(chosen) -> float:
    """Last accuracy with contune."""
    from contune import Learner
    from contune.backbone.config import ModelConfig

    tasks = work.cifar_tasks(chosen.shared)
    learner = Learner(
        ModelConfig(path=str(chosen.shared / work.VIT), image_size=chosen.image_size),
        "nmc",
        train={"precision": chosen.precision},
    )
    tests: list = []
    for task in tasks:
        learner.learn(task)
        tests.append(learner.test_dataset(task))
        right = [learner.answers(data) == data.labels for data in tests]
    return float(np.concatenate(right).mean())


def plain(chosen) -> float:
    """Last accuracy by the usual loop."""
    _, features, _ = work.plain_vit(chosen.shared, chosen.image_size)
    means, tasks = [], work.cifar_tasks(chosen.shared)

    def all_features(examples) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat(
                [features([examples.inputs[i] for i in rows]) for rows in torch.arange(len(examples)).split(32)]
            )

    for number, task in enumerate(tasks):
        found, labels = all_features(task.train), torch.from_numpy(task.train.labels)
        means += [found[labels == label].mean(0) for label in range(len(task.class_names))]
        classifier, right, start = functional.normalize(torch.stack(means), dim=1), [], 0
        for seen in tasks[: number + 1]:
            answers = (functional.normalize(all_features(seen.test), dim=1) @ classifier.T).argmax(1)
            right.append(answers == torch.from_numpy(seen.test.labels) + start)
            start += len(seen.class_names)
    return float(torch.cat(right).float().mean())


if __name__ == "__main__":
    pairs.main(
        __doc__,
        "nmc, ten tasks of CIFAR-100, ViT-Tiny at {image_size} pixels",
        plain,
        with_contune,
        lambda parser: parser.add_argument("--image-size", type=int, default=224),
    )
