"""The layers below the lowest trained one, kept or computed at every step: the same bits for every recipe."""

import pytest
from slow_subset import only

from contune.checks.run import SETTINGS, digit_tasks, same_state, tiny_model
from contune.contract.settings import CacheSettings
from contune.engine.learner import Learner
from contune.method.catalog import build_method, class_recipes, option_defaults, recipes

FROM_THE_INPUT = ["sapt"]  # its keys look at the embeddings, whichever layers its modules are in
BY_LAYER = [name for name in class_recipes() if isinstance(option_defaults(recipes()[name]).get("layers"), str)]


def learned(method: str, *, kept: bool) -> Learner:
    cache, train = CacheSettings(hidden=kept), {**SETTINGS, "epochs": 2}
    built = build_method(method, {"layers": "top-half"})
    learner = Learner(tiny_model(), built, train=train, cache=cache, device="cpu")
    tasks = digit_tasks()[:2]
    for experience in [tasks] if built.joint else tasks:
        learner.learn(experience)
    return learner


@pytest.mark.parametrize("method", only(["aper", "er", "i-lora", "lwf"], BY_LAYER))
def test_a_recipe_in_the_top_half_learns_the_same_with_its_lower_half_kept(method: str) -> None:
    kept, computed = (learned(method, kept=kept) for kept in (True, False))
    assert (kept.ledger.cache_hits > computed.ledger.cache_hits) == (method not in FROM_THE_INPUT)
    assert same_state(kept.state(), computed.state()) is None
