"""The common checks for what a configuration can name: a recipe, or a part in a plain composition."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from contune.checks.common import check_method
from contune.checks.run import CheckRun, checked_run, same_state
from contune.checks.setting import Setting, setting_of, settings
from contune.checks.settings.images import SETTING as IMAGES
from contune.checks.sizes import checked_method
from contune.errors import ConfigError, ContuneError, did_you_mean
from contune.method.catalog import CATEGORIES, build_method, compose, option_defaults, parts, recipes
from contune.method.method import Method

Offer = tuple["partial[Method]", str | None]  # what makes a method, and why it is refused

CARRIERS: dict[str, tuple[dict[str, Any], ...]] = {
    "adapter": ({"head": "linear"}, {"head": "linear", "router": "centroids"}),
    "head": (
        {"adapter": "none"},
        {"adapter": "bottleneck-per-task"},
        {"adapter": "prefix-per-task", "router": "centroids"},
    ),
    "rule": (
        {"adapter": "lora", "head": "linear"},
        {"adapter": "lora-per-task", "head": "linear"},
        {"adapter": "freezable", "head": "linear"},
    ),
    "router": ({"adapter": "prefix-per-task", "head": "linear"},),
}


@final
@dataclass(frozen=True)
class Finding:
    """What one check found: nothing, a `problem`, or that the method is refused there, with the sentence that says why."""

    title: str
    problem: str | None = None
    refused: str | None = None


def named_checks(name: str, on: str = "all") -> Iterator[Finding]:
    """All checks of a recipe, or of a part given as `rule:ewc`, in one setting or in `all` that it accepts.

    Raises `ConfigError` for an unknown name or setting, and where the one setting asked for, or every one, refuses it.
    """
    category, _, part = name.partition(":")
    if category in CATEGORIES and part not in parts(category):
        raise ConfigError(f"{category} {part!r} is unknown; {did_you_mean(part, parts(category))} (contune list parts)")
    if category not in CATEGORIES:
        build_method(name, {})  # an unknown name is refused before anything else
    makes = (
        {setting.name: carrier_of(category, part, setting) for setting in settings().values()}
        if category in CATEGORIES
        else {setting.name: recipe_in(name, setting) for setting in settings().values()}
    )
    chosen = list(makes) if on == "all" else [setting_of(on).name]
    taken = [setting for setting in chosen if makes[setting][1] is None]
    if not taken:
        raise ConfigError(f"{name} cannot be checked on {' or '.join(chosen)}: {makes[chosen[0]][1]}")
    for title, problem in described(name):
        yield Finding(title, problem)
    for setting in chosen:
        make, refused = makes[setting]
        if refused is not None:
            yield Finding(setting, refused=refused)
            continue
        found = (
            check_part(category, part, settings()[setting])
            if category in CATEGORIES
            else check_method(make, setting=settings()[setting])
        )
        for title, problem in found:
            yield Finding(f"{setting}: {title}", problem)


def recipe_in(name: str, setting: Setting) -> Offer:
    """A recipe, and why the setting refuses it, or None."""
    make = partial(checked_method, name)
    return make, setting.refusal(make())


def carrier_of(category: str, name: str, setting: Setting = IMAGES) -> Offer:
    """A plain composition that holds this part, and why the setting refuses it, or None."""
    refusal = ""
    for others in CARRIERS[category]:
        config = {**others, "rules": [name]} if category == "rule" else {**others, category: name}
        make = partial(compose, config)
        try:
            refused = setting.refusal(make())
        except ContuneError as error:
            refused = str(error)
        if refused is None:
            return make, None
        refusal = refusal or refused
    return make, refusal


def described(name: str) -> Iterator[tuple[str, str | None]]:
    """Whether a recipe or part says what it is, and a recipe works without options."""
    category, _, part = name.partition(":")
    if category in CATEGORIES:
        yield "is documented", None if inspect.getdoc(parts(category)[part]) else "the part has no docstring"
        return
    yield "is documented", None if inspect.getdoc(recipes()[name]) else "the recipe has no docstring"
    options = option_defaults(recipes()[name])
    missing = [option for option, default in options.items() if default is inspect.Parameter.empty]
    yield "works with its defaults", f"option {missing[0]!r} has no default" if missing else None


def check_part(category: str, name: str, setting: Setting = IMAGES) -> Iterator[tuple[str, str | None]]:
    """`check_method` for one part in a plain composition, and whether it is idle where it says so."""
    make, refused = carrier_of(category, name, setting)
    if refused is not None:
        raise ConfigError(f"{category}:{name} cannot be checked on {setting.name}: {refused}")
    yield from check_method(make, setting=setting)
    idle = getattr(parts(category)[name], "idle", {})
    if category == "rule" and idle:
        yield "is idle where it says so", not_idle(make.args[0], {name: dict(idle)}, setting)


def not_idle(config: dict[str, Any], idle: dict[str, Any], setting: Setting) -> str | None:
    """How a composition ends otherwise with this rule than without, or None."""
    plain, still = (
        checked_run(partial(compose, {**config, "rules": rules}), setting).learner.state() for rules in ([], [idle])
    )
    differs = [same_state(plain.inner(each), still.inner(each)) for each in ("adapter", "head")]
    problem = next((found for found in differs if found), None)
    return problem and f"with {idle} the carrier ends differently: {problem}"


def run_checks(name: str, trial: CheckRun | None = None, setting: Setting = IMAGES) -> Iterator[tuple[str, str | None]]:
    """`check_method` for a recipe by its name in one setting, and whether it is documented."""
    make = partial(checked_method, name)
    make()  # an unknown name is refused before anything else
    yield from described(name)
    yield from check_method(make, trial, setting)
