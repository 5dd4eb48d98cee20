"""Efficiency of continual learning as scores in [0, 1] (Diaz-Rodriguez et al., arXiv 1810.13166).

Where a paper reports one of them, give the plain counts beside it: trainable parameters, stored bytes, seconds.
"""

import math
from collections.abc import Mapping, Sequence

from contune.errors import DataError
from contune.metric.matrix import mean


def model_size_efficiency(model_bytes: Sequence[float]) -> float | None:
    """`MS = min(1, (1/T) sum_i Mem(theta_1) / Mem(theta_i))`; 1 where the model does not grow.

    `model_bytes` (tasks,) is the size of the model after each task.

    >>> model_size_efficiency([100, 200])
    0.75
    """
    if any(size <= 0 for size in model_bytes):
        raise DataError(f"a model size is {min(model_bytes)}; give the positive size after every task")
    average = mean(model_bytes[0] / size for size in model_bytes)
    return None if average is None else min(1.0, average)


def sample_storage_efficiency(stored_bytes: Sequence[float], data_bytes: float) -> float | None:
    """`SSS = 1 - min(1, (1/T) sum_i Mem(M_i) / Mem(D))`; 1 where no example is kept.

    `stored_bytes` (tasks,) is the size of the kept examples after each task, `data_bytes` that of the whole stream.
    """
    if data_bytes <= 0:
        raise DataError(f"data_bytes is {data_bytes}; give the positive size of all training examples")
    average = mean(size / data_bytes for size in stored_bytes)
    return None if average is None else 1.0 - min(1.0, average)


def computational_efficiency(one_pass: Sequence[float], spent: Sequence[float], scale: float = 1.0) -> float | None:
    """`CE = min(1, (1/T) sum_i scale * Ops_fb(Tr_i) / Ops(Tr_i))`.

    `one_pass` (tasks,) counts the operations of one forward and backward pass over a task's training data, `spent`
    (tasks,) all the operations spent on learning the task.
    """
    if len(one_pass) != len(spent) or any(operations <= 0 for operations in spent):
        raise DataError(
            f"{len(one_pass)} counts of one pass and {len(spent)} counts of operations spent; "
            "give one of each for every task, the latter positive"
        )
    average = mean(scale * single / whole for single, whole in zip(one_pass, spent, strict=True))
    return None if average is None else min(1.0, average)


def continual_learning_score(criteria: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """`CL_score = sum_c w_c c`, criteria in [0, 1], weights adding up to 1; None where a weighted criterion is."""
    _check_weights(criteria, weights)
    return _weighted_sum(criteria, weights)


def continual_learning_stability(deviations: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """`CL_stability = 1 - sum_c w_c stddev(c)`, deviations of the criteria over repeated runs."""
    _check_weights(deviations, weights)
    spread = _weighted_sum(deviations, weights)
    return None if spread is None else 1.0 - spread


def _weighted_sum(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    terms: list[float] = []
    for name in sorted(weights):
        value = values[name]
        if value is None:
            return None
        terms.append(weights[name] * value)
    return math.fsum(terms)


def _check_weights(criteria: Mapping[str, float | None], weights: Mapping[str, float]) -> None:
    unknown = sorted(set(weights) - set(criteria))
    if unknown:
        raise DataError(f"weights name {unknown}, which are not among the criteria {sorted(criteria)}")
    if any(weight < 0 for weight in weights.values()) or not math.isclose(math.fsum(weights.values()), 1.0):
        raise DataError(
            f"the weights add up to {math.fsum(weights.values())}; give weights of 0 or more that add up to 1"
        )
    for name, value in criteria.items():
        if value is not None and not 0 <= value <= 1:
            raise DataError(f"criterion {name!r} is {value}; give a number from 0 to 1")
