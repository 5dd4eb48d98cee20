"""The matrices of a model, and that every method leaves alone what it says it leaves alone, on models of five kinds."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from language_tasks import TRAIN, experience

from contune.adapter.weights.subset import ParameterSubset
from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.backbone.layers import is_norm
from contune.backbone.linear import find_matrices, tables_of
from contune.backbone.targets import head_parameters, matrices, target_modules
from contune.checks.architectures.models import save_architecture
from contune.engine.learner import Learner
from contune.errors import ContuneError
from contune.head.linear import Linear
from contune.method.catalog import build_method
from contune.method.method import Method

MODELS = ("llama", "mixtral", "t5", "bart", "gpt2")
TABLES, HEAD, NORMS, BIASES = "embeddings", "language head", "norms", "biases"
ALL = {"matrices", "experts", "routers", TABLES, HEAD, NORMS, BIASES}
MATRICES = {"matrices", "experts", "routers"}
# What each method may move; of it all that a model has must move, but where a method says "a part".
MOVES: list[tuple[str, dict[str, Any], set[str]]] = [
    ("finetune", {}, ALL),
    ("hft", {}, ALL),
    ("lift", {"rank": 2, "filter_rank": 2}, MATRICES),
    ("osf", {"examples": 4}, MATRICES),
    ("migu", {"carrier": "full"}, {"matrices", NORMS, BIASES}),
    ("lora", {}, set()),
    ("corda", {"rank": 2}, set()),
    ("o-lora", {"rank": 2}, set()),
]
REFUSED = {("migu", "mixtral"): "learn unprotected", ("corda", "mixtral"): "keeps 8"}
_kept: list["TemporaryDirectory[str]"] = []


@cache
def folder_of(name: str, tied: bool | None = None) -> str:
    kept = TemporaryDirectory(prefix="contune-kinds-")
    _kept.append(kept)
    changes = {} if tied is None else {"tie_word_embeddings": tied}
    return str(save_architecture(name, Path(kept.name) / name, **changes))


def backbone_of(name: str) -> Backbone:
    return Backbone.load(ModelConfig(path=folder_of(name)), reads="chat")


def kinds_of(backbone: Backbone) -> dict[str, str]:
    """What every base weight is, told by its place in the stock model and by no function under test."""
    kinds = {}
    tables = tables_of(backbone.stock)
    head = {id(value) for value in backbone.stock.get_output_embeddings().parameters()}
    norms = {id(p) for module in backbone.stock.modules() if is_norm(module) for p in module.parameters(recurse=False)}
    for name, value in backbone.base_parameters().items():
        if id(value) in tables:
            kinds[name] = TABLES
        elif id(value) in head:
            kinds[name] = HEAD
        elif id(value) in norms:
            kinds[name] = NORMS
        elif name.endswith("bias"):
            kinds[name] = BIASES
        else:
            kinds[name] = "experts" if ".experts." in name else "routers" if ".gate." in name else "matrices"
    return kinds


def moved_by(method: Method, model: str, train: dict[str, Any]) -> tuple[dict[str, str], set[str]]:
    """What every base weight is, and the names of those that two tasks move."""
    learner = Learner(model, method, objective="write", train=train)
    before = {name: value.detach().clone() for name, value in learner.backbone.base_parameters().items()}
    for name in ("big", "red"):
        learner.learn(experience(name))
    after = learner.backbone.base_parameters()
    return kinds_of(learner.backbone), {name for name in before if not torch.equal(before[name], after[name])}


def faults(method: Method, model: str, allowed: set[str]) -> list[str]:
    """What moves though it is not allowed, and which kinds of the allowed ones a model has and nothing of which moves."""
    kinds, moved = moved_by(method, model, {**TRAIN, "weight_decay": 0.1})
    wrong = [f"{name} ({kinds[name]}) moved" for name in sorted(moved) if kinds[name] not in allowed]
    still = (set(kinds.values()) & allowed) - {kinds[name] for name in moved}
    return wrong + [f"no {kind} moved" for kind in sorted(still)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "options", "allowed"), MOVES, ids=[name for name, _, _ in MOVES])
def test_what_a_method_leaves_alone_is_untouched(
    name: str, options: dict[str, Any], allowed: set[str], model: str
) -> None:
    method = build_method(name, options)
    if (name, model) in REFUSED:
        with pytest.raises(ContuneError, match=REFUSED[name, model]):
            faults(method, folder_of(model), allowed)
        return
    assert faults(method, folder_of(model), allowed) == []


def test_a_method_that_trains_shared_embeddings_is_caught() -> None:
    """The planted fault: a linear map is taken for a matrix though its weight is the embedding's."""

    def names_ending(name: str, owner: torch.nn.Module) -> bool:
        return name.endswith("weight") and not is_norm(owner)

    faulty = Method(ParameterSubset("faulty", names_ending, "all", 1.0), Linear())
    found = faults(faulty, folder_of("t5"), MATRICES)
    assert any("embeddings" in one for one in found)


@pytest.mark.parametrize("model", ["t5", "bart"])
@pytest.mark.parametrize("name", ["finetune", "hft", "lift", "osf"])
def test_encoder_and_decoder_both_learn(name: str, model: str) -> None:
    _, moved = moved_by(build_method(name, {}), folder_of(model), TRAIN)
    for stack in ("encoder.", "decoder."):
        assert any(stack in each for each in moved)


@pytest.mark.parametrize("model", ["t5", "bart"])
def test_half_of_the_encoders_matrices_rests_too(model: str) -> None:
    learner = Learner(folder_of(model), "hft", objective="write", train=TRAIN)
    learner.begin(experience("big"))
    resting = set(learner.method.adapter.frozen)  # type: ignore[attr-defined]
    known = matrices(learner.backbone)
    for stack in ("encoder.", "decoder."):
        own = [name for name in known if stack in name]
        assert 0.3 * len(own) <= sum(name in resting for name in own) <= 0.7 * len(own)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_language_head_trains_under_full_and_rests_under_matrices(model: str, tied: bool) -> None:
    path = folder_of(model, tied)
    for name, trains in (("finetune", True), ("lift", False), ("osf", False)):
        kinds, moved = moved_by(build_method(name, {}), path, TRAIN)
        wanted = [each for each in kinds if each in ("embed_tokens.weight", "wte.weight", "lm_head.weight")]
        assert len(wanted) == (1 if tied else 2)
        assert [each in moved for each in wanted] == [trains] * len(wanted), name


def test_matrices_are_counted() -> None:
    counts = {name: len(matrices(backbone_of(name))) for name in MODELS}
    # Llama: 4 + 3 a layer; Mixtral: 4, a router, two tensors of experts; T5: 4 + 2 and 8 + 2; GPT-2: 2 + 2.
    assert counts == {"llama": 14, "mixtral": 14, "t5": 32, "bart": 32, "gpt2": 8}
    backbone = backbone_of("mixtral")
    shapes = {tuple(one.weight.shape) for one in matrices(backbone).values() if not one.is_layer}
    assert shapes == {(4, 32), (4, 128, 32), (4, 32, 64)}
    share = sum(one.weight.numel() for one in matrices(backbone).values()) / sum(
        value.numel() for layer in backbone.layers for value in layer.parameters()
    )
    assert share > 0.99


def test_no_image_model_has_other_matrices_than_its_linear_maps() -> None:
    from word_tasks import ENCODERS, tiny_backbone

    for name in (*ENCODERS, "gpt2", "t5"):
        backbone = tiny_backbone(name)
        assert all(one.is_layer for one in matrices(backbone).values())
        assert len(find_matrices(backbone.model, ())) == len(matrices(backbone))
        assert head_parameters(backbone) == []


@pytest.mark.parametrize("stacks", ["both", "encoder", "decoder"])
def test_the_stacks_that_are_adapted(stacks: Any) -> None:
    backbone = backbone_of("t5")
    found = {name.split(".")[0] for name in target_modules(backbone, "query-value", "all", stacks)}
    assert found == ({"encoder", "decoder"} if stacks == "both" else {stacks})
    assert len(target_modules(backbone_of("llama"), "query-value", "all", stacks)) == 4


def test_a_lora_in_the_encoder_alone_learns_and_changes_answers() -> None:
    learner = Learner(folder_of("t5"), "lora", objective="write", train={**TRAIN, "lr": 0.05}, stacks="encoder")
    start = learner.begin(experience("big"))
    before = {name: value.detach().clone() for name, value in start.model.trained().items()}
    assert before
    assert all(".encoder." in name for name in before)
    learner.fit(start, lambda report: None)
    assert all(not torch.equal(value, start.model.trained()[name]) for name, value in before.items())


def test_all_linear_layers_of_a_model_with_experts_are_refused_with_what_to_name() -> None:
    with pytest.raises(ContuneError, match=r"\['k_proj', 'o_proj', 'q_proj', 'v_proj'\]"):
        target_modules(backbone_of("mixtral"), "all-linear", "all")


@pytest.mark.parametrize("name", ["lift", "osf"])
def test_of_every_expert_a_part_moves_and_a_part_rests(name: str) -> None:
    options = {"rank": 2, "filter_rank": 2} if name == "lift" else {"examples": 4}
    learner = Learner(folder_of("mixtral"), name, objective="write", train={**TRAIN, "weight_decay": 0.1}, **options)
    before = {key: value.detach().clone() for key, value in learner.backbone.base_parameters().items()}
    learner.learn(experience("big"))
    for key, value in learner.backbone.base_parameters().items():
        if ".experts." not in key:
            continue
        for old, new in zip(before[key], value.detach(), strict=True):
            change = (new - old).double()
            if name == "lift":
                assert 0 < int((change != 0).sum()) <= 2 * sum(old.shape)
            else:  # 80 percent of the singular directions keep what they did
                left, _, right = torch.linalg.svd(old.double(), full_matrices=False)
                kept = round(0.8 * min(old.shape)) - 1
                assert float(change.abs().max()) > 0
                assert float((change @ right[:kept].T).abs().max()) < 1e-6
                assert float((left[:, :kept].T @ change).abs().max()) < 1e-6


def test_modules_that_peft_refuses_are_refused_in_a_sentence() -> None:
    with pytest.raises(ContuneError, match="set targets to a list of those that it can"):
        Learner(folder_of("mamba"), "lora", objective="write", targets="all-linear")
    Learner(folder_of("mamba"), "lora", objective="write", targets=["in_proj", "x_proj", "dt_proj"])


@pytest.mark.parametrize("method", ["lora", "o-lora", "inflora"])
def test_one_matrix_for_queries_keys_and_values_is_known_by_its_name_in_phi3(method: str) -> None:
    learner = Learner(folder_of("phi3"), method, objective="write", train=TRAIN)
    names = set(learner.begin(experience("big")).model.trained())
    assert any("qkv_proj" in name for name in names)
