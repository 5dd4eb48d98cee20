"""Every recipe lives: two updates, back to the bit, and what is stored twice is stored once."""

from pathlib import Path

import pytest

from contune.checks.run import same_state
from contune.checks.setting import Setting, settings
from contune.checks.sizes import check_options
from contune.errors import ContuneError
from contune.living.checking import sizes
from contune.living.model import LivingModel
from contune.method.catalog import build_method, recipes

SEVERAL = ("er", "ranpac", "ease", "o-lora", "l2p")
GROWING = ("s-prompts", "o-lora", "ease", "progressive-prompts")


def home_of(recipe: str) -> Setting | None:
    """The first setting in which a recipe is taken; None where it learns all tasks at once."""
    if build_method(recipe, {}).joint:
        return None
    return next((one for one in settings().values() if one.refusal(build_method(recipe, {})) is None), None)


def lived(path: Path, recipe: str, setting: Setting, updates: int = 2, **options: int) -> LivingModel:
    train = dict(setting.train) if build_method(recipe, {}).train.get("epochs", 1) else {**setting.train, "epochs": 0}
    own = {
        "objective": setting.objective,
        "kind": setting.kinds[0],
        "train": {**train, "epochs": min(train["epochs"], 1)},
    }
    model = LivingModel.create(
        path, setting.model(), {"name": recipe, **check_options(recipe), **options}, device="cpu", **own
    )
    for number, task in enumerate((setting.tasks() * 4)[:updates]):
        model.update(task, name=f"update {number}", gate=False)
        model.promote(number + 1, reason="all are taken")
    return model


def check_back_to_the_bit(path: Path, recipe: str) -> None:
    setting = home_of(recipe)
    if setting is None:
        pytest.skip(f"{recipe} learns all tasks at once, or needs data that the checks lack")
    model = lived(path, recipe, setting)
    named = {"task": 0} if setting.kinds[0] == "task-incremental" else {}
    inputs = list(setting.tasks()[0].test.take(range(4)).inputs)
    after = LivingModel.open(path)
    first = after.learner(1).state()
    answers = [(one.label, one.score) for one in after.predict(inputs, version=1, **named)]
    assert model.rollback(reason="to see") == 1
    again = LivingModel.open(path)
    assert same_state(first, again.learner().state()) is None
    assert [(one.label, one.score) for one in again.predict(inputs, **named)] == answers
    assert same_state(again.learner(2).state(), model.learner(2).state()) is None
    differs = same_state(first, again.learner(2).state())
    assert differs is not None  # else the rollback has shown nothing
    assert again.verify() == []


@pytest.mark.parametrize("recipe", SEVERAL)
def test_rollback_is_to_the_bit(recipe: str, tmp_path: Path) -> None:
    check_back_to_the_bit(tmp_path / "model", recipe)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(set(recipes()) - set(SEVERAL)))
def test_rollback_is_to_the_bit_for_every_recipe(recipe: str, tmp_path: Path) -> None:
    check_back_to_the_bit(tmp_path / "model", recipe)


@pytest.mark.parametrize("recipe", GROWING[:1])
def test_methods_that_grow_store_what_is_new(recipe: str, tmp_path: Path) -> None:
    setting = settings()["texts"]
    model = lived(tmp_path / "model", recipe, setting, updates=10)
    found = sizes(model.folder)
    assert found["unique"] / found["total"] <= 0.5
    assert model.verify() == []


def test_a_recipe_that_does_not_fit_says_so(tmp_path: Path) -> None:
    with pytest.raises(ContuneError):
        LivingModel.create(tmp_path / "model", settings()["texts"].model(), "lfpt5", device="cpu")
