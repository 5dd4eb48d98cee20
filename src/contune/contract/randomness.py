"""Randomness without hidden state: every draw is a function of the seed and of what it is for.

No generator outlives the draw it was made for, so a run that was killed draws after `resume` exactly what it would have
drawn, and there is no generator state to save.
"""

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, *purpose: int | str) -> int:
    """A seed in [0, 2**63) for one purpose, from sha256, so that neighbouring seeds and purposes are unrelated.

    >>> derived_seed(0, "shuffle", 1) == derived_seed(0, "shuffle", 1) != derived_seed(0, "shuffle", 2)
    True
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def numpy_generator(seed: int, *purpose: int | str) -> np.random.Generator:
    """A fresh NumPy generator for one purpose."""
    return np.random.default_rng(derived_seed(seed, *purpose))


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of `device`.

    `torch.manual_seed` seeds those of every kind of device there might be, and for each kind that the machine lacks it
    writes down the whole call stack: up to milliseconds, at every step.

    >>> seed_global(3, torch.device("cpu"))
    >>> torch.initial_seed()
    3
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)  # the device need not be the current one


def torch_generator(seed: int, *purpose: int | str) -> torch.Generator:
    """A fresh CPU torch generator for one purpose."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))
