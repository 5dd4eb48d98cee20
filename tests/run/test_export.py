"""What a run exports gives, in stock peft and transformers, the scores that contune gives."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_tasks import WRITER, config_of
from run_helpers import config_text, run
from safetensors.torch import load_file

from contune.checks.run import digit_tasks, tiny_model
from contune.engine.learner import Learner
from contune.errors import CombinationError, RunDirectoryError
from contune.run.export import export_run
from contune.run.predict import load_learner

TOLERANCE = 1e-5


def language_run(tmp_path: Path, method: object) -> Path:
    return run(config_of(tmp_path, method), tmp_path / "run")


def own_scores(learner: Learner, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return learner.backbone.stock(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


IDS = torch.tensor([[4, 20, 30, 40, 50, 60]])


@pytest.mark.parametrize("method", ["lora", "o-lora", "inflora"])
def test_language_adapters_load_in_stock_peft(method: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = language_run(tmp_path, method)
    export_run(out, tmp_path / "peft", "peft")
    expected = own_scores(load_learner(out), IDS)
    base = AutoModelForCausalLM.from_pretrained(WRITER)
    with torch.no_grad():
        untouched = base(IDS).logits
        found = PeftModel.from_pretrained(base, str(tmp_path / "peft"))(input_ids=IDS).logits
    assert (found - expected).abs().max() < TOLERANCE
    assert (untouched - expected).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("method", ["lora", "o-lora", "finetune"])
def test_merged_language_models_load_in_stock_transformers(method: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = language_run(tmp_path, method)
    export_run(out, tmp_path / "merged", "merged")
    expected = own_scores(load_learner(out), IDS)
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits
    assert (found - expected).abs().max() < TOLERANCE
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("a")["input_ids"]


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_class_scores_come_out_of_stock_parts(form: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    out = run(config_text("lora"), tmp_path / "run")
    export_run(out, tmp_path / "out", form)
    learner = load_learner(out)
    pixels = learner.backbone.collate([(learner.backbone.prepare(digit_tasks()[0].test.inputs), np.arange(4))]).pixels
    if form == "peft":
        base = AutoModel.from_pretrained(tiny_model(), add_pooling_layer=False)
        model = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    else:
        model = AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=False)
    head = load_file(tmp_path / "out" / "head.safetensors")
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    with torch.no_grad():
        feature = model(pixel_values=pixels).last_hidden_state[:, 0]
        scores = feature @ head["weight"].T + head["bias"]
        expected = learner.method.head.logits(
            learner.backbone.features(
                learner.backbone.collate([(learner.backbone.prepare(digit_tasks()[0].test.inputs), np.arange(4))])
            )
        )
    assert (scores - expected).abs().max() < TOLERANCE
    assert labels == learner.class_names


def test_tensors_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    out = run(config_text("dualprompt"), tmp_path / "run")
    names = export_run(out, tmp_path / "out", "safetensors")
    kept = load_file(sorted((out / "checkpoints").iterdir())[-1] / "state.safetensors")
    found = load_file(tmp_path / "out" / "adapter.safetensors")
    assert {"adapter.safetensors", "head.safetensors", "labels.json", "contune.json"} <= set(names)
    assert all(kept[name].equal(value) for name, value in found.items())
    assert any(name.startswith("router/") for name in found)


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_what_has_no_such_form_is_said(form: Any, tmp_path: Path) -> None:
    out = run(config_text("dualprompt"), tmp_path / "run")
    with pytest.raises(CombinationError, match="--format"):
        export_run(out, tmp_path / "out", form)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RunDirectoryError, match="never overwritten"):
        export_run(tmp_path / "run", tmp_path / "out", "peft")
