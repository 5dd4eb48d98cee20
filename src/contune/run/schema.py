"""A JSON schema of the whole configuration: what editors need to complete keys and to say what is wrong."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from contune.contract.settings import TrainSettings
from contune.method.card import card_of
from contune.method.catalog import CATEGORIES, parts, recipes
from contune.method.options import OURS, Option, options_of
from contune.run.config import RunConfig

Schema = dict[str, Any]


def config_schema() -> Schema:
    """The schema of a configuration file, with every recipe and part and all of their options."""
    schema = RunConfig.model_json_schema()
    train = TrainSettings.model_json_schema()
    definitions: Schema = schema["$defs"] | train.pop("$defs", {}) | {"train": train}
    for category in CATEGORIES:
        definitions[category] = part_schema(category)
    for name, recipe in recipes().items():
        definitions[f"method {name}"] = recipe_schema(name, recipe)
    definitions["composition"] = composition_schema()
    definitions["method"] = {
        "anyOf": [
            {"enum": list(recipes())},
            *({"$ref": f"#/$defs/method {name}"} for name in recipes()),
            {"$ref": "#/$defs/composition"},
        ]
    }
    places = schema["properties"]
    places["train"] = {"$ref": "#/$defs/train"}
    places["method"] |= {"anyOf": [{"$ref": "#/$defs/method"}, {"type": "null"}]}
    places["methods"] |= {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/method"}}, {"type": "null"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": definitions}


def options_schema(make: Callable[..., Any]) -> Schema:
    """The options of a recipe or part, and no others."""
    options = options_of(make)
    required = [name for name, option in options.items() if option.default is inspect.Parameter.empty]
    found: Schema = {
        "type": "object",
        "properties": {name: option_schema(option) for name, option in options.items()},
        "additionalProperties": False,
    }
    return {**found, "required": required} if required else found


def option_schema(option: Option) -> Schema:
    """What one option may be, with its meaning and default."""
    try:
        found = TypeAdapter(option.kind, config=ConfigDict(arbitrary_types_allowed=True)).json_schema()
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError):
        found = {}  # a type of a user's own that only Python knows
    source = f" (default: {option.source})" if option.source != OURS else ""
    said = {"description": option.meaning + source} if option.meaning else {}
    return {**found, **said, **default_schema(option)}


def default_schema(option: Option) -> Schema:
    """The default, where it can be written down."""
    try:
        json.dumps(option.default)
    except TypeError:
        return {}
    return {"default": option.default}


def recipe_schema(name: str, recipe: Callable[..., Any]) -> Schema:
    """`{name: er, size: 500, train: {...}}`."""
    found = options_schema(recipe)
    own = {"name": {"const": name}, "train": {"$ref": "#/$defs/train"}}
    return {
        **found,
        "description": card_of(recipe).idea,
        "properties": own | found["properties"],
        "required": ["name", *found.get("required", [])],
    }


def part_schema(category: str) -> Schema:
    """A part's name, or `{name: {option: value}}`."""
    known: Mapping[str, Callable[..., Any]] = parts(category)
    options = {
        name: {"description": card_of(part).idea, "anyOf": [options_schema(part), {"type": "null"}]}
        for name, part in known.items()
    }
    whole = {
        "type": "object",
        "properties": options,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"anyOf": [{"enum": list(known)}, whole]}


def composition_schema() -> Schema:
    """A method from parts."""
    reference = {category: {"$ref": f"#/$defs/{category}"} for category in CATEGORIES}
    properties = {
        "adapter": reference["adapter"] | {"description": "what is trained inside the model"},
        "head": reference["head"] | {"description": "how features become answers"},
        "rules": {"type": "array", "items": reference["rule"], "description": "what protects the past"},
        "router": reference["router"] | {"description": "which module answers where no task is named"},
        "adapt": {"enum": ["every-task", "first-task"], "description": "in which tasks the adapter learns"},
        "joint": {"type": "boolean", "description": "learn all tasks at once, which is no continual learning"},
        "train": {"$ref": "#/$defs/train"},
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}
