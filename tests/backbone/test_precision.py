"""bf16: frozen matrices and products are of half the size, what is trained is not, and every law holds as in float32."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cut_runs import cut_back
from run_helpers import config_text, resume, run, same_run
from slow_subset import only, some
from tiny_models import ALL_MODELS
from typer.testing import CliRunner
from word_tasks import few_inputs, tiny_folder, word_tasks

from contune.backbone.attention.interface import SEAM_NAMES
from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.backbone.precision import matrices
from contune.checks.run import SETTINGS, accuracy, digit_tasks, tiny_model
from contune.checks.sizes import checked_method
from contune.cli import app
from contune.engine.learner import Learner
from contune.method.catalog import class_recipes, recipes
from contune.run.predict import load_learner

OWN = {"adapter": {"bottleneck": {}}, "rules": ["replay"]}


def learner(name: str, precision: str, model: str | None = None) -> Learner:
    method = checked_method(name)
    settings = {**SETTINGS, "precision": precision}
    if not method.train.get("epochs", 1):
        settings["epochs"] = 0
    return Learner(model or tiny_model(), method, train=settings)


@pytest.mark.parametrize("name", some(class_recipes()))
def test_every_recipe_learns_in_bf16(name: str) -> None:
    scores, losses = [], []
    for precision in ("fp32", "bf16"):
        made = learner(name, precision)
        tasks = digit_tasks()[:2]
        for experience in [tasks] if made.method.joint else [[task] for task in tasks]:
            context = made.begin(experience)
            made.fit(context, lambda report: losses.append(report.loss))
            trained = context.model.trained()
            made.end(context)
            assert {value.dtype for value in trained.values()} <= {torch.float32}
        scores.append(accuracy(made, tasks))
        assert all(bool(value.isfinite().all()) for value in trained.values())
        assert torch.bfloat16 not in {tensor.dtype for tensor in made.state().tensors.values()}
        if precision == "bf16":
            halved = [weight for weight in matrices(made.backbone.model) if weight.dtype == torch.bfloat16]
            base = {id(p) for p in made.backbone.base_parameters().values()}
            trains_base = bool(base & {id(p) for p in made.method.adapter.trained().values()})
            assert halved or trains_base
            assert trains_base or made.base_unchanged()
            assert all(weight.grad is None for weight in halved)
    assert np.isfinite(losses).all()
    assert scores[1] > scores[0] - 0.15, scores


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_model_computes_in_bf16_and_resumes_from_a_layer_exactly(name: str) -> None:
    config = ModelConfig(path=str(tiny_folder(name)))
    whole, half = Backbone.load(config), Backbone.load(config, precision="bf16")
    loaded = whole.base_hash()
    assert half.base_hash() == loaded
    half.cast_frozen([])
    assert half.base_hash() != loaded
    inputs = few_inputs(whole)
    with torch.no_grad():
        exact, features = whole.features(inputs), half.features(inputs)
        assert features.dtype == torch.float32
        assert not torch.equal(features, exact)
        assert torch.nn.functional.cosine_similarity(features, exact).min() > 0.99
        for layer in range(1, half.depth):
            states = half.hidden(inputs, layer)
            assert states.dtype == torch.float32
            assert torch.equal(half.features(inputs, resume=(layer, states)), features)
    assert next(iter(half.base_parameters().values())).requires_grad is False


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "llama"])
@pytest.mark.parametrize("method", ["lora", "codaprompt", "dualprompt", "ease", "ranpac", "o-lora"])
def test_texts_are_learned_in_bf16(name: str, method: str) -> None:
    found = [each for each in recipes() if each.replace("-", "") == method.replace("-", "")]
    if name == "llama" and method in ("codaprompt", "dualprompt", "ease"):
        pytest.skip("encoders alone")
    made = learner(found[0], "bf16", str(tiny_folder(name)))
    for task in word_tasks((2, 3)):
        made.learn(task)
    assert made.base_unchanged()
    answers = made.predict(["aaaa 1", "zz 2"])
    assert set(answers) <= set(made.class_names)


@pytest.mark.parametrize("found", [{}, {"avx512_bf16": True}, {"amx_bf16": True}])
def test_a_processor_without_bf16_instructions_is_noted(
    found: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"architecture": "x86_64", **found})
    (tmp_path / "a.yaml").write_text(config_text("nmc", precision="bf16"))
    command = ["run", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert ("no bf16 instructions" in " ".join(done.output.split())) is (not found)


def test_plain_attention_on_a_cpu_in_bf16_alone() -> None:
    config = ModelConfig(path=tiny_model())
    assert Backbone.load(config, precision="bf16").model.config._attn_implementation == SEAM_NAMES["products"]
    assert Backbone.load(config).model.config._attn_implementation == SEAM_NAMES["sdpa"]


@pytest.mark.parametrize(
    "method", only(["er"], ["er", "l2p", "o-lora", {"name": "ranpac", "form": "small"}, "slca", "ewc", OWN])
)
def test_stopped_inside_a_task_it_goes_on_with_the_same_bits(tmp_path: Path, method: object) -> None:
    text = config_text(method, precision="bf16", checkpoint_steps=4, epochs=3)
    whole, broken = run(text, tmp_path / "whole"), run(text, tmp_path / "broken")
    cut_back(broken)
    resume(broken)
    same_run(whole, broken)
    results = json.loads((broken / "results.json").read_text())
    assert results["model"]["precision"] == "bf16"
    assert results["model"]["base_unchanged"] or method == "slca"


def test_precisions_never_share_a_kept_result(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config_text("nmc"))
    command = ["run", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out"), "-q"]
    folder = ["--set", f"cache.folder={tmp_path / 'cache'}"]
    done = CliRunner().invoke(app, [*command, *folder, "--sweep", "train.precision=fp32,bf16"])
    assert done.exit_code == 0, done.output
    found = [json.loads(f.read_text()) for f in sorted(tmp_path.glob("out/*/results.json"))]
    costs = [results["cost"]["examples_forward"] for results in found]
    assert costs[0] == costs[1] > 0
    assert found[0]["model"]["sha256"] == found[1]["model"]["sha256"]


def test_a_run_is_answered_in_its_own_precision(tmp_path: Path) -> None:
    out = run(config_text("lora", precision="bf16"), tmp_path / "run")
    made = load_learner(out)
    assert made.backbone.precision == "bf16"
    assert made.predict([digit_tasks()[0].test.inputs[0]])[0] in made.class_names


def test_a_trained_tensor_moves_by_less_than_bf16_can_hold() -> None:
    made = Learner(tiny_model(), "lora", train={**SETTINGS, "lr": 1e-6, "precision": "bf16"})
    made.learn(digit_tasks()[0])
    values = [value for name, value in made.state().tensors.items() if "lora_A" in name]
    assert any(not torch.equal(value, value.bfloat16().float()) for value in values)


def test_an_unknown_precision_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"precision.*'fp32' or 'bf16'"):
        run(config_text("lora", precision="fp16"), tmp_path / "run")
