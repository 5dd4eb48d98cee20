"""A sweep: every combination of some values as runs of their own, which share what a frozen model gives."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from cut_runs import cut_back
from run_helpers import config_text, run, same_run
from typer.testing import CliRunner

from contune.cli import app
from contune.errors import ConfigError
from contune.run.config import parse_config
from contune.run.folder.group import members_of
from contune.run.report.compare import compare

RIDGE = {"head": "ridge"}


def started(folder: Path, method: object, *arguments: str, **changes: object) -> object:
    values = {**yaml.safe_load(config_text(method)), **changes}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    command = ["run", str(folder / "config.yaml"), "--out", str(folder / "out"), *arguments]
    return CliRunner().invoke(app, command)


def results(folder: Path) -> dict[str, dict[str, object]]:
    found = sorted(folder.glob("out/*/results.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in found}


def test_every_combination_is_a_run_in_a_folder_of_its_name() -> None:
    config = parse_config(
        config_text("er"), sweeps=["method.size=10,20", "train.lr=1e-3,0.1", "method.layers=all,[0, 2]"]
    )
    members = dict(members_of(config))
    assert len(members) == 8
    name = "method.size=20,train.lr=0.001,method.layers=0-2"
    assert members[name].method == {"name": "er", "size": 20, "layers": [0, 2]}
    assert members[name].train["lr"] == 0.001
    assert members[name].sweep is None


def test_methods_and_a_sweep_combine() -> None:
    values = {**yaml.safe_load(config_text("nmc")), "methods": ["nmc", {"name": "er", "train": {"lr": 0.5}}]}
    del values["method"]
    config = parse_config(yaml.safe_dump(values), sweeps=["train.lr=0.1,0.2"])
    found = {label: single.train["lr"] for label, single in members_of(config)}
    assert found == {"nmc,train.lr=0.1": 0.1, "nmc,train.lr=0.2": 0.2, "er,train.lr=0.1": 0.1, "er,train.lr=0.2": 0.2}
    assert {label for label, _ in members_of(parse_config(config_text("er"), sweeps=["method=er,lora"]))} == {
        "method=er",
        "method=lora",
    }


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        ("train.lrr=1,2", "'lrr'.*did you mean 'lr'"),
        ("train.epochs=1,-2", "epochs"),
        ("method.siz=1,2", "did you mean 'size'"),
        ("stream.order_sed=0,1", "did you mean 'order_seed'"),
        ("trian.lr=1", "did you mean 'train'"),
        ("train.lr", "write key=value"),
        ("train.lr=", "write key=value"),
        ("train.lr=[1", "write key=value"),
    ],
)
def test_a_wrong_key_or_value_fails_before_any_compute(tmp_path: Path, sweep: str, sentence: str) -> None:
    done = started(tmp_path, "er", "--sweep", sweep)
    assert isinstance(done.exception, ConfigError)
    with pytest.raises(ConfigError, match=sentence):
        raise done.exception
    assert not (tmp_path / "out").exists()


def test_a_key_swept_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="swept twice"):
        parse_config(config_text("er"), sweeps=["train.lr=1", "train.lr=2"])


@pytest.mark.parametrize("folder", [None, "cache"])
@pytest.mark.parametrize(
    "sweep",
    [
        "method.head.ridge.strength=1,10",
        "train.seed=0,1",
        "stream.order_seed=null,0,1",
        "method.head=ridge,class-means",
    ],
)
def test_what_differs_above_a_frozen_model_reads_no_image_again(tmp_path: Path, sweep: str, folder: str | None) -> None:
    cache = {"folder": str(tmp_path / folder)} if folder else {}
    method = {"head": {"ridge": {}}}
    done = started(tmp_path, method, "--sweep", sweep, "-q", cache=cache)
    assert done.exit_code == 0, done.output
    members = list(results(tmp_path).values())
    costs = sorted(member["cost"]["examples_forward"] for member in members)
    assert len(costs) == len(sweep.split(","))
    assert costs[:-1] == [0] * (len(costs) - 1)
    stream = members[0]["stream"]
    assert costs[-1] == sum(stream["train_examples"]) + sum(stream["test_examples"])


def test_what_was_shared_changes_no_number(tmp_path: Path) -> None:
    started(tmp_path, "nmc", "--sweep", "stream.order_seed=0,1", "-q")
    values = yaml.safe_load(config_text("nmc"))
    values["stream"]["order_seed"] = 1
    alone = run(yaml.safe_dump(values), tmp_path / "alone")
    second = tmp_path / "out" / "stream.order_seed=1"
    assert json.loads((second / "results.json").read_text())["cost"]["examples_forward"] == 0
    same_run(alone, second)


def test_another_model_or_preprocessing_shares_nothing(tmp_path: Path) -> None:
    done = started(
        tmp_path, "nmc", "--sweep", "model.feature=class-token,mean", "--sweep", "model.image_size=16,32", "-q"
    )
    assert done.exit_code == 0, done.output
    assert len({member["cost"]["examples_forward"] for member in results(tmp_path).values()}) == 1
    assert next(iter(results(tmp_path).values()))["cost"]["examples_forward"] > 0


def test_a_sweep_is_gone_on_with_as_a_whole(tmp_path: Path) -> None:
    arguments = ("--sweep", "train.seed=0,1", "--sweep", "method.size=10,20", "-q")
    assert started(tmp_path, "er", *arguments).exit_code == 0
    names = sorted(results(tmp_path))
    assert len(names) == 4
    shutil.copytree(tmp_path / "out", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / names[2])
    cut_back(tmp_path / "broken" / names[1])
    done = CliRunner().invoke(app, ["resume", str(tmp_path / "broken"), "-q"])
    assert done.exit_code == 0, done.output
    for name in names:
        same_run(tmp_path / "out" / name, tmp_path / "broken" / name)


def test_settings_that_are_null_are_remembered(tmp_path: Path) -> None:
    done = started(tmp_path, "er", "--sweep", "train.seed=0,1", "-q", train={"epochs": 1, "clip": None})
    assert done.exit_code == 0
    shutil.rmtree(tmp_path / "out" / "train.seed=1")
    assert CliRunner().invoke(app, ["resume", str(tmp_path / "out"), "-q"]).exit_code == 0
    resolved = yaml.safe_load((tmp_path / "out" / "train.seed=1" / "config.yaml").read_text())
    assert resolved["train"]["clip"] is None
    assert "sweep" not in resolved


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    done = started(tmp_path, "linear-probe", "--sweep", "train.lr=1e38,0.01", "-q", train={"epochs": 1, "clip": None})
    assert done.exit_code == 1
    assert "train.lr=1e+38 failed: the loss is" in done.output
    assert {name for name, found in results(tmp_path).items() if found["finished"]} == {"train.lr=0.01"}


def test_it_ends_with_a_comparison_over_seeds(tmp_path: Path) -> None:
    done = started(tmp_path, "er", "--sweep", "train.seed=0,1", "--sweep", "method.size=10,20")
    assert done.exit_code == 0
    assert "size 10" in done.output
    assert "±" in done.output
    comparison = compare([tmp_path / "out" / name for name in results(tmp_path)])
    assert [len(group.runs) for group in comparison.groups] == [2, 2]
