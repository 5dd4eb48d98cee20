"""Support tickets made by a seed, and living models on tiny text encoders."""

from pathlib import Path
from typing import Any

import numpy as np

from contune.checks.settings.texts import text_model
from contune.living.model import LivingModel

WORDS = {
    "refund": "aaaa money back",
    "delivery": "zz zz parcel late",
    "login": "012345 password",
    "invoice": "...!? bill",
    "praise": "QRS thank you",
    "cancel": "the cat goodbye",
}


def tickets(month: int, classes: tuple[str, ...], each: int = 40) -> list[dict[str, str]]:
    """So many tickets of each class, none like those of another month."""
    draw = np.random.default_rng(month)
    rows = [{"text": f"{WORDS[name]} {draw.integers(10**8)}", "label": name} for name in classes for _ in range(each)]
    return [rows[at] for at in draw.permutation(len(rows))]


EASY: dict[str, Any] = {"floor": 0.3, "margin": 0.3, "suite_margin": 0.9, "resamples": 200}


def living(path: Path, method: Any = "ranpac", **keys: Any) -> LivingModel:
    """A living model that learns in milliseconds."""
    if method == "ranpac":
        method = {"name": "ranpac", "form": "small", "random_features": 64}
    own = {"device": "cpu", "gate": EASY, "train": {"epochs": 0} if isinstance(method, dict) else {"epochs": 2}, **keys}
    return LivingModel.create(path, text_model(), method, **own)
