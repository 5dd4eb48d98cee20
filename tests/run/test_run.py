"""A run as a user sees it: the directory, exact resume after kill -9, damage, locks and refusals."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from cut_runs import cut_back
from run_helpers import config_text, resume, run, same_run
from safetensors.torch import load_file
from typer.testing import CliRunner

from contune.backbone.backbone import Backbone
from contune.checks.run import tiny_model
from contune.cli import app
from contune.contract.processes import Processes
from contune.engine.observer import Observer
from contune.errors import ConfigError, RunDirectoryError
from contune.run.config import parse_config
from contune.run.execute import choose_device, resume_run, start_run
from contune.run.folder.directory import RunDirectory
from contune.run.report.report import write_report

CONTUNE = [sys.executable, "-c", "from contune.cli import main; main()"]


def test_the_base_is_read_whole_at_the_start_and_at_the_end_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes: list[str] = []
    usual = Backbone.base_hash

    def counted(backbone: Backbone) -> str:
        hashes.append(usual(backbone))
        return hashes[-1]

    monkeypatch.setattr(Backbone, "base_hash", counted)
    run(config_text("er"), tmp_path / "run")
    assert len(hashes) == 2
    assert hashes[0] == hashes[1]


def test_the_directory_holds_what_it_promises(tmp_path: Path) -> None:
    out = run(config_text("er"), tmp_path / "run")
    results = json.loads((out / "results.json").read_text())
    assert results["finished"]
    assert results["model"]["base_unchanged"]
    table = pq.read_table(out / "predictions.parquet").to_pydict()
    last = [c for a, c in zip(table["after_task"], table["correct"], strict=True) if a == 4]
    assert results["metrics"]["last_accuracy"] == pytest.approx(sum(last) / len(last))
    assert [len([a for a in row if a is not None]) for row in results["accuracy_matrix"]] == [1, 2, 3, 4, 5]
    resolved = yaml.safe_load((out / "config.yaml").read_text())
    assert resolved["train"]["optimizer"] == "adamw"
    assert len(list((out / "checkpoints").iterdir())) == 2


def test_exported_adapters_load_in_stock_peft(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    out = run(config_text("lora"), tmp_path / "run")
    base = AutoModel.from_pretrained(tiny_model(), add_pooling_layer=False)
    model = PeftModel.from_pretrained(base, str(out / "adapters" / "005"))
    state = load_file(sorted((out / "checkpoints").iterdir())[-1] / "state.safetensors")
    loaded = dict(model.named_parameters())
    names = [name for name in state if name.startswith("adapter/")]
    assert names
    assert all(state[name].equal(loaded[name.removeprefix("adapter/")]) for name in names)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(tmp_path: Path) -> None:
    out = run(config_text("lora"), tmp_path / "run")
    whole = run(config_text("lora"), tmp_path / "whole")
    newest = sorted((out / "checkpoints").iterdir())[-1] / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(bytes(data))
    said: list[str] = []
    resume_run(out, processes=Processes(), observer=Observer(), say=said.append)
    assert len(said) == 1
    assert "does not match its checksum" in said[0]
    same_run(whole, out)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "model: {}")
    with directory.locked(), pytest.raises(RunDirectoryError, match="in use"), RunDirectory(tmp_path / "run").locked():
        pass


def test_an_existing_directory_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RunDirectoryError, match="never overwritten"):
        run(config_text("nmc"), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("stream.taks=3", "did you mean 'tasks'"),
        ("train.epoch=3", "did you mean 'epochs'"),
        ("method.rnk=3", "did you mean 'rank'"),
        ("method.name=lroa", "did you mean 'lora'"),
        ("method.rank=many", "rank"),
        ("train.lr=-1", "greater than 0"),
        ("nonsense", "key=value"),
        ("device=gpu", "device: not known; give auto"),
    ],
)
def test_wrong_configurations_fail_before_any_compute(tmp_path: Path, change: str, sentence: str) -> None:
    from contune.run.execute import make_method

    text = config_text({"name": "lora"})
    with pytest.raises(ConfigError, match=sentence):
        make_method(parse_config(text, [change]))
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"device is 'cuda:1', which is not here \(torch counts 1 of cuda\)"):
        run(config_text("nmc") + "device: cuda:1\n", tmp_path / "run")
    assert choose_device("cuda:0") == "cuda:0"


def test_combinations_that_make_no_sense_are_refused() -> None:
    from contune.run.execute import make_method

    for method, sentence in [
        ({"adapter": "lora", "head": "class-means"}, "adapt: first-task"),
        ({"head": "ridge", "rules": ["replay"]}, "nothing to protect"),
        ({"adapter": "lora", "rules": ["orthogonality"]}, "lora-per-task"),
        ({"adapter": "lora-per-task", "rules": ["ewc"]}, "works on tensors that live through several tasks"),
    ]:
        with pytest.raises(ConfigError, match=sentence):
            make_method(parse_config(config_text(method)))


def test_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    from contune.errors import NumericError

    with pytest.raises(NumericError, match=r"task 1 \(task 1\), epoch 1, step \d+ of the task"):
        run(config_text("linear-probe", lr=1e38, clip=None), tmp_path / "run")


def test_cached_and_uncached_predictions_are_equal(tmp_path: Path) -> None:
    method = {"adapter": {"lora": {"layers": [2]}}}
    predictions = []
    for number, kept in enumerate((True, False)):
        config = parse_config(config_text(method), [f"cache.features={kept}", f"cache.hidden={kept}"])
        out = start_run(config, Path.cwd(), tmp_path / str(number), processes=Processes(), observer=Observer())
        predictions.append(pq.read_table(out / "predictions.parquet"))
        hits = json.loads((out / "results.json").read_text())["cost"]["cache_hits"]
        assert (hits > 0) == kept
    assert predictions[0].equals(predictions[1])


def test_nmc_reads_every_example_exactly_once(tmp_path: Path) -> None:
    out = run(config_text("nmc"), tmp_path / "run")
    results = json.loads((out / "results.json").read_text())
    examples = sum(results["stream"]["train_examples"]) + sum(results["stream"]["test_examples"])
    assert results["cost"]["examples_forward"] == examples


def test_a_tracker_is_given_losses_and_accuracies(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from contune.run.tracking import TrackingObserver

    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        TrackingObserver(Observer(), "tensorbord", tmp_path, "run")
    tracker = TrackingObserver(Observer(), "tensorboard", tmp_path / "tracking", "run")
    config = parse_config(config_text("lora"))
    start_run(config, Path.cwd(), tmp_path / "run", processes=Processes(), observer=tracker)
    tracker.close()
    (file,) = (tmp_path / "tracking").rglob("events*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert len(events.Scalars("accuracy/mean of seen")) == 5
    assert len(events.Scalars("loss")) > 0


def test_a_comparison_of_methods_is_gone_on_with_as_a_whole(tmp_path: Path) -> None:
    values = {**yaml.safe_load(config_text("nmc")), "methods": ["nmc", "er", {"name": "er", "size": 10}]}
    del values["method"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    arguments = [str(tmp_path / "config.yaml"), "--out", str(tmp_path / "whole"), "-q"]
    runner = CliRunner()
    assert runner.invoke(app, ["run", *arguments]).exit_code == 0
    assert sorted(p.name for p in (tmp_path / "whole").iterdir() if p.is_dir()) == ["er", "er-2", "nmc"]
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "er-2")
    cut_back(tmp_path / "broken" / "er")
    done = runner.invoke(app, ["resume", str(tmp_path / "broken"), "--json"])
    assert done.exit_code == 0
    assert [result["finished"] for result in json.loads(done.stdout)] == [True] * 3
    for name in ("nmc", "er", "er-2"):
        same_run(tmp_path / "whole" / name, tmp_path / "broken" / name)
    again = runner.invoke(app, ["run", *arguments])
    assert "never overwritten" in str(again.exception or again.output)


def test_what_the_method_found_is_in_results_and_report_and_a_resume_keeps_it(tmp_path: Path) -> None:
    out = run(config_text("lcia"), tmp_path / "out")
    found = json.loads((out / "results.json").read_text())["diagnostics"]
    assert found[0] == {}, "in the first task nothing is averaged"
    assert all(0 <= each["adaptive-ema"]["fallback share"] <= 1 for each in found[1:])
    assert "adaptive-ema: fallback share" in write_report([out], tmp_path / "report.html").read_text()
    shutil.copytree(out, tmp_path / "cut")
    shutil.rmtree(sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1])
    resume(tmp_path / "cut")
    same_run(out, tmp_path / "cut")
