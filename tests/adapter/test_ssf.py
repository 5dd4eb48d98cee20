"""Scale and shift: folding the pairs into the base weights gives the same features, in every family of encoders."""

from typing import Any

import pytest
import torch
from torch import nn
from word_tasks import ENCODERS, few_inputs, tiny_backbone, tiny_folder, word_tasks

from contune.adapter.bottleneck.ssf import SPREAD, Ssf, scaled_and_shifted
from contune.backbone.backbone import Backbone
from contune.backbone.layers import is_norm
from contune.checks.common import check_method
from contune.contract.data import Batch
from contune.engine.learner import Learner
from contune.head.linear import Linear
from contune.method.method import Method


def batch_of(backbone: Backbone, **fields: Any) -> Batch:
    return Batch((), few_inputs(backbone), torch.zeros(3), torch.zeros(3), **fields)


def attached(name: str, **options: Any) -> tuple[Backbone, Ssf]:
    backbone, adapter = tiny_backbone(name), Ssf(**options)
    adapter.attach(backbone, 0)
    return backbone, adapter


def test_scale_and_shift_by_hand_on_states_and_on_maps() -> None:
    scale, shift = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert scaled_and_shifted(states, scale, shift).tolist() == [[[2.5, -1.0], [6.5, -3.0]]]
    maps = states.transpose(1, 2).reshape(1, 2, 1, 2)
    found = scaled_and_shifted(maps, scale, shift).reshape(1, 2, 2).transpose(1, 2)
    assert torch.equal(found, scaled_and_shifted(states, scale, shift))


def fold(backbone: Backbone, adapter: Ssf) -> None:
    """Multiply every pair into the weights and biases of its module (the paper's re-parametrisation)."""
    modules = dict(backbone.model.named_modules())
    pairs = {name.rpartition(".")[0] for name in adapter.trained()}
    for name in pairs:
        module = modules[name]
        scale, shift = (adapter.trained()[f"{name}.{kind}"].detach() for kind in ("scale", "shift"))
        bias = getattr(module, "bias", None)
        start = torch.zeros_like(shift) if bias is None else bias.detach()
        module.weight = nn.Parameter(module.weight.detach() * scale.reshape(-1, *[1] * (module.weight.dim() - 1)))
        module.bias = nn.Parameter(start * scale + shift)


@pytest.mark.parametrize("layers", ["all", "top-half"])
@pytest.mark.parametrize("name", ENCODERS)
def test_equals_folding_into_the_base_weights(name: str, layers: str) -> None:
    backbone, adapter = attached(name, layers=layers)
    generator = torch.Generator().manual_seed(1)
    for value in adapter.trained().values():
        value.data.add_(0.2 * torch.randn(value.shape, generator=generator))
    batch = batch_of(backbone)
    plain, found = backbone.features(batch.inputs), adapter.encode(backbone, batch)[0]
    fold(backbone, adapter)
    assert torch.allclose(found, backbone.features(batch.inputs), atol=2e-4, rtol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_places_of_a_vit_are_all_its_operations() -> None:
    backbone, adapter = attached("vit")
    expected = {
        name
        for name, module in backbone.model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) or is_norm(module)
    }
    assert {name.rpartition(".")[0] for name in adapter.trained()} == expected
    assert len(expected) == 3 * 8 + 2  # q, k, v, o, two of the MLP and two norms a layer; patches and the final norm


@pytest.mark.parametrize("name", ENCODERS)
def test_every_pair_changes_the_features(name: str) -> None:
    backbone, adapter = attached(name)
    features = adapter.encode(backbone, batch_of(backbone))[0]
    weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(3))
    gradients = torch.autograd.grad((features * weight).sum(), list(adapter.trained().values()))
    dead = {name for name, grad in zip(adapter.trained(), gradients, strict=True) if not grad.abs().max() > 0}
    assert not dead


def test_a_pooler_that_features_do_not_use_gets_no_pair() -> None:
    from transformers import ViTModel

    backbone = tiny_backbone("vit")
    backbone.model.pooler = ViTModel(backbone.model.config, add_pooling_layer=True).pooler
    adapter = Ssf()
    adapter.attach(backbone, 0)
    assert not any("pooler" in name for name in adapter.trained())


def test_start_values() -> None:
    _, adapter = attached("vit")
    scales = torch.cat([value.detach() for name, value in adapter.trained().items() if name.endswith(".scale")])
    shifts = torch.cat([value.detach() for name, value in adapter.trained().items() if name.endswith(".shift")])
    for values, middle in ((scales, 1.0), (shifts, 0.0)):
        assert abs(float(values.mean()) - middle) < 0.005
        assert abs(float(values.std()) - SPREAD) < 0.003


def test_cached_lower_layers_change_nothing() -> None:
    backbone, adapter = attached("bert", layers=[1, 2])
    assert adapter.lowest_layer(backbone) == 1
    batch = batch_of(backbone)
    resumed = batch_of(backbone, resume=(1, backbone.hidden(batch.inputs, 1)))
    assert torch.allclose(adapter.encode(backbone, resumed)[0], adapter.encode(backbone, batch)[0], atol=1e-5)


@pytest.mark.parametrize("layers", ["all", "top-half"])
def test_passes_the_common_checks(layers: str) -> None:
    assert [p for p in check_method(lambda: Method(Ssf(layers=layers), Linear())) if p[1]] == []


def test_learns_texts() -> None:
    learner = Learner(tiny_folder("bert"), Method(Ssf(), Linear()), train={"epochs": 8, "lr": 5e-3, "batch_size": 8})
    task = word_tasks((4,))[0]
    learner.learn(task)
    assert (learner.answers(learner.test_dataset(task)) == task.test.labels).mean() > 0.5
    assert learner.base_unchanged()
