"""HFT: half of each layer's matrices rest, to the bit, and another half in the next task."""

from typing import Any

import pytest
import torch
from language_tasks import TRAIN, WRITER, experience
from resume_helpers import difference_after_a_stop
from torch import Tensor
from word_tasks import ENCODERS, tiny_backbone, tiny_folder, word_tasks

from contune.adapter.weights.half_fine_tuning import Half, role_of
from contune.backbone.layers import is_norm
from contune.backbone.linear import is_linear
from contune.checks.run import SETTINGS, digit_tasks, tiny_model
from contune.engine.learner import Learner
from contune.errors import ConfigError
from contune.method.catalog import build_method
from contune.stream.task import Task

ADAMW = {**SETTINGS, "weight_decay": 0.1, "optimizer": "adamw"}
SGD = {**SETTINGS, "lr": 0.02, "weight_decay": 0.1, "optimizer": "sgd", "momentum": 0.9}


def model_of(case: str) -> str:
    return tiny_model() if case == "digits" else str(tiny_folder(case))


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def hft_learner(case: str = "digits", train: dict[str, Any] = ADAMW, **options: Any) -> Learner:
    return Learner(model_of(case), build_method("hft", {"lr_scale": 1.0, **options}), train=train)


def half_of(learner: Learner) -> Half:
    adapter = learner.method.adapter
    assert isinstance(adapter, Half)
    return adapter


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in half_of(learner).state().tensors.items()}


def resting_modules(learner: Learner, role: str) -> list[list[str]]:
    """For every layer, the paths of its modules of a role whose weight rests."""
    base = {id(value): name for name, value in learner.backbone.base_parameters().items()}
    frozen = set(half_of(learner).frozen)
    return [
        [
            path
            for path, module in layer.named_modules()
            if role_of(path, module, multiplies=is_linear(module)) == role and base[id(module.weight)] in frozen
        ]
        for layer in learner.backbone.layers
    ]


@pytest.mark.parametrize("case", ["digits", "bert"])
@pytest.mark.parametrize("train", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_what_rests_keeps_every_bit_and_the_rest_moves(case: str, train: dict[str, Any]) -> None:
    learner = hft_learner(case, train)
    halves = []
    for task in tasks_of(case):
        before = weights(learner)
        learner.learn(task)
        frozen = set(half_of(learner).frozen)
        after = weights(learner)
        assert {name for name, value in before.items() if torch.equal(value, after[name])} == frozen
        halves.append(frozen)
    assert halves[0] != halves[1] != halves[2]


@pytest.mark.parametrize("seed", range(4))
def test_counts_of_a_llama(seed: int) -> None:
    """Per layer two of four attention matrices; of three in the MLP two in ceil(L / 2) layers and one in the others."""
    learner = Learner(WRITER, "hft", objective="write", train={**TRAIN, "seed": seed})
    learner.begin(experience("big"))
    assert [len(found) for found in resting_modules(learner, "attention")] == [2, 2, 2]
    assert sorted(len(found) for found in resting_modules(learner, "feed-forward")) == [1, 2, 2]
    assert [len(found) for found in resting_modules(learner, "norm")] == [1, 1, 1]


@pytest.mark.parametrize("case", [*ENCODERS, "gpt2", "t5"])
def test_every_matrix_of_every_family_has_its_role(case: str) -> None:
    backbone = tiny_backbone(case)
    adapter = Half()
    adapter.attach(backbone, 0)
    sizes = {role: [len(layer) for layer in layers] for role, layers in adapter._groups.items()}
    fused = case in ("modernbert", "gpt2")
    assert sizes["attention"] == [2 if fused else 4] * 3
    assert sizes["feed-forward"] == [2] * 3
    assert all(1 <= size <= 2 for size in sizes["norm"])
    grouped = {name for layers in adapter._groups.values() for layer in layers for names in layer for name in names}
    places = {id(value): name for name, value in backbone.base_parameters().items()}
    inside = {
        places[id(value)]
        for layer in backbone.layers
        for module in layer.modules()
        if is_linear(module) or is_norm(module)
        for value in module.parameters(recurse=False)
    }
    assert grouped == inside
    left = set(adapter.trained()) - grouped
    assert any(word in name for name in left for word in ("embed", "wte", "shared"))


def test_a_bias_goes_with_its_matrix() -> None:
    learner = hft_learner()
    learner.begin(digit_tasks()[0])
    frozen = half_of(learner).frozen
    ends = {name.rsplit(".", 1)[0] for name in frozen}
    assert ends
    assert all(f"{end}.{kind}" in frozen for end in ends for kind in ("weight", "bias"))


def test_without_rest_it_is_full_fine_tuning_to_the_bit() -> None:
    ours = hft_learner(share=0.0)
    plain = Learner(tiny_model(), build_method("finetune", {"lr_scale": 1.0, "loss_over": "seen"}), train=ADAMW)
    for task in digit_tasks()[:2]:
        ours.learn(task)
        plain.learn(task)
    names = set(plain.state().tensors)
    assert names == set(ours.state().tensors)
    assert all(torch.equal(value, ours.state().tensors[name]) for name, value in plain.state().tensors.items())


def test_what_rests_has_neither_gradient_nor_moments() -> None:
    learner = hft_learner()
    context, kept = learner.begin(digit_tasks()[0]), []
    learner.fit(context, lambda report: kept.append(set(report.memory())))
    base = learner.backbone.base_parameters()
    for name in half_of(learner).frozen:
        assert base[name].grad is None
        assert not base[name].requires_grad
        assert not any(key.startswith(f"adapter.{name}|") for key in kept[-1])


def test_the_draw_depends_on_seed_and_task() -> None:
    halves = []
    for seed in (0, 0, 1):
        learner = hft_learner(train={**ADAMW, "seed": seed})
        learner.begin(digit_tasks()[0])
        halves.append(half_of(learner).frozen)
    assert halves[0] == halves[1] != halves[2]


def test_with_many_tasks_nothing_is_safe_for_good() -> None:
    learner = hft_learner()
    always: set[str] | None = None
    for task in [*digit_tasks(), *digit_tasks(), *digit_tasks()]:
        learner.learn(task)
        frozen = set(half_of(learner).frozen)
        always = frozen if always is None else always & frozen
    assert always is not None
    assert len(always) < 3


def test_a_share_of_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than 1"):
        Half(share=1.0)


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_it_resumes_exactly(case: str) -> None:
    learner, again = hft_learner(case), hft_learner(case)
    assert difference_after_a_stop(learner, again, tasks_of(case)) is None
