"""Finding recipes and parts: by walking the rooms, so that a new file is known without being registered anywhere."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call

from contune.contract.objective import Objective
from contune.errors import ConfigError, ContuneError, did_you_mean
from contune.method.method import Method
from contune.method.needs import defaults
from contune.method.options import Option, options_of
from contune.method.rooms import CATEGORIES as CATEGORIES
from contune.method.rooms import modules_of, plugins, public, returned, room_of
from contune.method.rooms import parts as parts
from contune.stream.modality import add_modalities

Recipe = Callable[..., Method]


def add_plugin(module: ModuleType) -> None:
    """Make the recipes, parts and modalities of a user's module known; the user names it, never a configuration."""
    if module not in plugins:
        plugins.append(module)
    add_modalities(module)
    recipes.cache_clear()
    parts.cache_clear()
    defaults.cache_clear()
    objectives.cache_clear()


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name: contune's own, those of installed packages (`contune.methods` entry points), and plugins'."""
    found: dict[str, Recipe] = {}
    for module in (*modules_of("contune.method"), *plugins):
        for name, function in public(module, inspect.isfunction):
            if returned(function) is Method:
                found[getattr(module, "NAME", name.replace("_", "-"))] = function
    for entry in entry_points(group="contune.methods"):
        found.setdefault(entry.name, entry.load())
    for helper in ("build-method", "compose"):
        found.pop(helper, None)
    return dict(sorted(found.items()))


@cache
def objectives() -> dict[str, type[Objective]]:
    """All objectives by name."""
    found = {}
    for module in (*modules_of("contune.objective"), *plugins):
        for _, cls in public(module, inspect.isclass):
            if issubclass(cls, Objective) and cls.__dict__.get("name"):
                found[cls.name] = cls
    return dict(sorted(found.items()))


def build_objective(name: str) -> Objective:
    """A fresh objective of this name."""
    known = objectives()
    if name not in known:
        raise ConfigError(f"objective {name!r} is unknown; {did_you_mean(name, known)}")
    return known[name]()


def accepts(recipe: str, objective: str) -> bool:
    """Whether a recipe can be used with an objective, by default."""
    try:
        build_method(recipe, {}).for_objective(build_objective(objective))
    except ContuneError:
        return False
    return True


def class_recipes() -> list[str]:
    """Names of the recipes that learn classes; the others are for other objectives alone."""
    return [name for name in recipes() if accepts(name, "classify")]


def build_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method of a recipe with these hyper-parameters; unknown names and wrong values are refused."""
    known = recipes()
    if name not in known:
        raise ConfigError(f"method {name!r} is unknown; {did_you_mean(name, known)} (contune list methods)")
    method: Method = call_checked(known[name], options, f"method {name!r}", f"contune show {name}")
    return method


def compose(config: Mapping[str, Any]) -> Method:
    """A method from parts: `adapter`, `head`, `rules`, and optionally `router`, `adapt` and `joint`."""
    allowed = ("adapter", "head", "rules", "router", "adapt", "joint")
    for key in config:
        if key not in allowed:
            raise ConfigError(f"unknown key {key!r} in method; {did_you_mean(key, allowed)}")
    rules = config.get("rules") or []
    if not isinstance(rules, list):
        raise ConfigError(f"method.rules is {rules!r}; give a list, such as [replay, {{ewc: {{strength: 100}}}}]")
    adapt = config.get("adapt", "every-task")
    if adapt not in ("every-task", "first-task"):
        raise ConfigError(f"method.adapt is {adapt!r}; give 'every-task' or 'first-task'")
    return Method(
        adapter=build_part("adapter", config.get("adapter", "none")),
        head=build_part("head", config.get("head", "linear")),
        rules=tuple(build_part("rule", rule) for rule in rules),
        router=build_part("router", config["router"]) if config.get("router") else None,
        adapt=adapt,
        joint=bool(config.get("joint", False)),
    )


def build_part(room: str, config: Any) -> Any:
    """One part from its name, or from `{name: {option: value}}`."""
    if isinstance(config, str):
        config = {config: {}}
    if not isinstance(config, Mapping) or len(config) != 1:
        raise ConfigError(
            f"{room} is {config!r}; give a name, or one name with its options as {{name: {{key: value}}}}"
        )
    name, options = next(iter(config.items()))
    known = parts(room)
    if name not in known:
        raise ConfigError(f"{room} {name!r} is unknown; {did_you_mean(str(name), known)} (contune list parts)")
    return call_checked(known[name], options or {}, f"{room} {name!r}", f"contune show {room}:{name}")


def call_checked(make: Callable[..., Any], options: Mapping[str, Any], what: str, more: str) -> Any:
    """Call with options checked against the signature's names and types; `more` is the command that explains them."""
    allowed = options_of(make)
    if not isinstance(options, Mapping):
        raise ConfigError(f"{what} is given {options!r}; give its options as key: value ({more})")
    for key in options:
        if key not in allowed:
            near = did_you_mean(str(key), allowed) if allowed else "it has none"
            raise ConfigError(f"{what} has no option {key!r}; {near} ({more})")
    options = with_inner_parts(allowed, options)
    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(_signature_only(allowed))
    try:
        values = checked(**options)
    except ValidationError as error:
        first = error.errors()[0]
        option = allowed[str(first["loc"][0])]
        raise ConfigError(
            f"{what}, option {option.name}: given {options.get(option.name)!r}; {first['msg']}; {option.sentence()}"
        ) from error
    try:
        return make(**values)
    except (TypeError, ValueError) as error:
        if isinstance(error, ContuneError):
            raise
        raise ConfigError(f"{what}: {error} ({more})") from error


def with_inner_parts(allowed: Mapping[str, Option], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with a part in place of every name or mapping that is given where the signature asks for a part."""
    found = dict(options)
    for name, given in options.items():
        room = room_of(allowed[name].kind)
        if room is not None and isinstance(given, str | Mapping):
            found[name] = build_part(room, given)
    return found


def option_defaults(make: Callable[..., Any]) -> dict[str, Any]:
    """The options of a recipe or part with their defaults."""
    return {name: option.default for name, option in options_of(make).items()}


def first_sentence(make: Callable[..., Any]) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(make) or "").split("\n")[0]


def _signature_only(options: Mapping[str, Option]) -> Callable[..., dict[str, Any]]:
    """A function of the same keyword options that gives back those it was given, for pydantic to check."""
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=option.kind)
        for name, option in options.items()
    ]

    def given(**options: Any) -> dict[str, Any]:
        return options

    given.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    given.__annotations__ = {name: option.kind for name, option in options.items()}
    return given
