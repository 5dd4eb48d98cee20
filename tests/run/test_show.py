"""`contune show` and `contune schema` know every method, part and key."""

import io
import json
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from contune.cli import app
from contune.errors import ConfigError
from contune.method.catalog import CATEGORIES, build_method, compose, parts, recipes
from contune.method.options import options_of
from contune.run.config import RunConfig
from contune.run.execute import make_method
from contune.run.schema import config_schema
from contune.run.sections import sections
from contune.run.show import rendered, shown

PARTS = [(category, name) for category in CATEGORIES for name in parts(category)]
KEYS = [f"{home}.{key}".lstrip(".") for home, model in sections().items() for key in model.model_fields]


def printed(name: str) -> str:
    file = io.StringIO()
    Console(width=200, file=file).print(rendered(shown(name)))
    return file.getvalue()


def config_of(example: str) -> RunConfig:
    return RunConfig.model_validate({"model": {"path": "m"}, "stream": {"data": "digits"}, **yaml.safe_load(example)})


@pytest.mark.parametrize("name", recipes())
def test_show_knows_every_method(name: str) -> None:
    text, options = printed(name), options_of(recipes()[name])
    assert all(option in text for option in options)
    assert all(f"{word}" in text for word in ("memory", "compute", "example"))
    assert make_method(config_of(shown(name).example)).adapter.name == build_method(name, {}).adapter.name


@pytest.mark.parametrize(("category", "name"), PARTS)
def test_show_knows_every_part(category: str, name: str) -> None:
    what = shown(f"{category}:{name}")
    assert [row[0] for row in what.options] == list(options_of(parts(category)[name]))
    method = yaml.safe_load(what.example)["method"]
    assert name in json.dumps(method)
    compose(method)


@pytest.mark.parametrize("key", KEYS)
def test_show_knows_every_key(key: str) -> None:
    home, _, last = key.rpartition(".")
    description = sections()[home].model_fields[last].description
    assert description
    what = shown(key)
    if key in sections():
        assert {row[0] for row in what.options} == set(sections()[key].model_fields)
    elif key not in {name for _, name in PARTS}:
        assert what.title.lower().startswith(description.lower())


def test_an_example_of_a_key_sets_it() -> None:
    example = shown("train.lr").example
    assert yaml.safe_load(example.split("    or    ")[0]) == {"train": {"lr": 0.001}}
    assert example.endswith("--set train.lr=0.001")


def test_bounds_are_said() -> None:
    assert shown("train.momentum").facts == {"give": "number from 0 below 1", "default": "0.9"}
    assert shown("model.path").facts["default"] == "none, must be given"


@pytest.mark.parametrize(
    ("name", "message"),
    [("eer", "did you mean 'er'"), ("rule:ewk", "did you mean 'ewc'"), ("train.lrr", "did you mean 'train.lr'")],
)
def test_what_is_not_there_is_answered_with_the_nearest_name(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shown(name)


def test_a_name_of_method_and_part_says_so() -> None:
    assert shown("l2").name == "method l2"
    assert "method l2" in shown("rule:l2").facts["see also"]


def test_the_commands_print_them() -> None:
    run = CliRunner()
    assert "most examples kept" in run.invoke(app, ["show", "er"], terminal_width=200).output
    schema = json.loads(run.invoke(app, ["schema"]).output)
    assert schema == json.loads(json.dumps(config_schema()))


def resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][node["$ref"].removeprefix("#/$defs/")] if "$ref" in node else node


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(value) for value in node.values()))
    return set().union(*(references(value) for value in node)) if isinstance(node, list) else set()


def test_the_schema_holds_every_option_with_its_meaning_and_default() -> None:
    schema = config_schema()
    for name, recipe in recipes().items():
        properties = schema["$defs"][f"method {name}"]["properties"]
        assert properties["name"] == {"const": name}
        for option in options_of(recipe).values():
            assert properties[option.name]["description"].startswith(option.meaning)
            assert properties[option.name]["default"] == option.default
    for category, name in PARTS:
        whole = schema["$defs"][category]["anyOf"][1]["properties"][name]["anyOf"][0]
        assert set(whole["properties"]) == set(options_of(parts(category)[name]))
        assert whole["additionalProperties"] is False


def test_the_schema_has_every_key_and_no_reference_leads_nowhere() -> None:
    schema = config_schema()
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    train = resolve(schema, schema["properties"]["train"])
    assert set(train["properties"]) == set(sections()["train"].model_fields)
    assert {name.removeprefix("#/$defs/") for name in references(schema)} <= set(schema["$defs"])
