"""Figures of answers that are numbers.

`label` and `prediction` hold for each example its values, not a number where there is none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = Mapping[str, Sequence[Any]]


def pairs(columns: Columns) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right and answered values (n, k), of which those that are missing are not a number in both."""
    right = np.asarray(columns["label"], dtype=np.float64)
    found = np.asarray(columns["prediction"], dtype=np.float64)
    return right, np.where(np.isnan(right), np.nan, found)


def r_squared(columns: Columns, classes: Sequence[str]) -> float | None:
    """1 - sum of squared errors over the sum of squares around the mean, averaged over values; None where all are alike.

    >>> r_squared({"label": [[1.0], [3.0]], "prediction": [[1.0], [2.0]]}, ())
    0.5
    """
    del classes
    right, found = pairs(columns)
    if not right.size:
        return None
    around = np.nansum((right - np.nanmean(right, axis=0)) ** 2, axis=0)
    wrong = np.nansum((right - found) ** 2, axis=0)
    return None if (around == 0).any() else float((1 - wrong / around).mean())


def explained(columns: Columns, classes: Sequence[str]) -> float | None:
    """R^2, and 0 where it is below: the mean would have been the better answer."""
    found = r_squared(columns, classes)
    return None if found is None else max(0.0, found)


def root_mean_squared_error(columns: Columns, classes: Sequence[str]) -> float | None:
    """Square root of the mean squared error over all values that there are."""
    del classes
    right, found = pairs(columns)
    return float(np.sqrt(np.nanmean((right - found) ** 2))) if right.size else None


def mean_absolute_error(columns: Columns, classes: Sequence[str]) -> float | None:
    """Mean absolute error over all values that there are."""
    del classes
    right, found = pairs(columns)
    return float(np.nanmean(np.abs(right - found))) if right.size else None
