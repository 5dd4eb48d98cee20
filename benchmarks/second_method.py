"""A second closed-form method on the same data costs next to nothing: its features are kept.

    python benchmarks/second_method.py ../shared --image-size 112

The plain side runs `ranpac` in its form small with an empty cache, in float32, contune's side runs it after `nmc` has filled
the cache folder (which is not timed): ten tasks of CIFAR-100, evaluated after each.
"""

import tempfile

import numpy as np

import pairs
import work


def learn(chosen, method: str, folder: str) -> float:
    """Last accuracy of a method with its features kept in `folder`."""
    from contune import Learner
    from contune.backbone.config import ModelConfig
    from contune.contract.settings import CacheSettings

    model = ModelConfig(path=str(chosen.shared / work.VIT), image_size=chosen.image_size)
    options = {"form": "small", "random_features": 500} if method == "ranpac" else {}
    learner = Learner(
        model, method, train={"precision": chosen.precision}, cache=CacheSettings(folder=folder), **options
    )
    tests: list = []
    for task in work.cifar_tasks(chosen.shared):
        learner.learn(task)
        tests.append(learner.test_dataset(task))
        right = [learner.answers(data) == data.labels for data in tests]
    return float(np.concatenate(right).mean())


def first(chosen) -> float:
    """With an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        return learn(chosen, "ranpac", folder)


def second(chosen) -> float:
    """With the cache that another method left; the filling is taken out of the time."""
    with tempfile.TemporaryDirectory() as folder:
        started = pairs.now()
        learn(chosen, "nmc", folder)
        pairs.untimed(pairs.now() - started)
        return learn(chosen, "ranpac", folder)


if __name__ == "__main__":
    pairs.main(
        __doc__,
        "second closed-form method, ten tasks of CIFAR-100, ViT-Tiny at {image_size} pixels",
        first,
        second,
        lambda parser: parser.add_argument("--image-size", type=int, default=224),
    )
