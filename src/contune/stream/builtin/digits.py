"""The built-in stream `digits`: scikit-learn's 8x8 handwritten digits, which come with the package."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from contune.stream.order import split_rows
from contune.stream.read.rows import Place, Row, Split

TEST_SHARE = 0.25
# Any fixed number: the split is part of the stream's definition and not of a user's configuration.
SPLIT_SEED = 20


def read_digits() -> dict[str, Split]:
    """1,797 grey digits as RGB images of shape (8, 8, 3), a fixed quarter of every class as test.

    Grey values 0..16 are scaled to 0..255. Ids are row numbers in scikit-learn's order within the split.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[:, :, :, None], 3, axis=3)
    is_test = np.zeros(len(images), dtype=bool)
    for label in range(10):
        own = np.flatnonzero(digits.target == label)
        is_test[own[split_rows(len(own), share=TEST_SHARE, keep=None, seed=(SPLIT_SEED, label))[1]]] = True
    names = tuple(str(label) for label in range(10))
    splits = {}
    for name, chosen in (("train", np.flatnonzero(~is_test)), ("test", np.flatnonzero(is_test))):
        inputs = [images[row] for row in chosen]
        rows = [
            Row(inputs, at, names[digits.target[row]], None, at, partial(_place, chosen))
            for at, row in enumerate(chosen.tolist())
        ]
        splits[name] = Split(rows, (), len(rows), names, modality="image")
    return splits


def _place(chosen: NDArray[np.int64], at: int) -> Place:
    return Place("digits", "row", int(chosen[at]) + 1)
