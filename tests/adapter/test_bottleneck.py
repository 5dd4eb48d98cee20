"""Bottleneck adapters: against layers computed by hand, in every family of encoders."""

from typing import Any

import pytest
import torch
from torch import Tensor
from word_tasks import ENCODERS, few_inputs, tiny_backbone, tiny_folder, word_tasks

from contune.adapter.bottleneck.single import Bottleneck, bottleneck
from contune.adapter.bottleneck.sublayers import find_sublayers
from contune.backbone.backbone import Backbone
from contune.checks.common import check_method
from contune.checks.run import digit_tasks, new_learner
from contune.contract.data import Batch
from contune.engine.learner import Learner
from contune.errors import ConfigError
from contune.head.linear import Linear
from contune.method.catalog import build_part
from contune.method.method import Method

FORMS = ("parallel", "houlsby", "pfeiffer")


def batch_of(backbone: Backbone, **fields: Any) -> Batch:
    return Batch((), few_inputs(backbone), torch.zeros(3), torch.zeros(3), **fields)


def attached(name: str, **options: Any) -> tuple[Backbone, Bottleneck]:
    backbone = tiny_backbone(name)
    adapter = Bottleneck(**options)
    adapter.attach(backbone, 0)
    return backbone, adapter


def stirred(adapter: Bottleneck) -> Bottleneck:
    """The adapter with weights that do something."""
    generator = torch.Generator().manual_seed(1)
    for value in adapter.trained().values():
        value.data.add_(0.5 * torch.randn(value.shape, generator=generator))
    return adapter


def weights_at(adapter: Bottleneck, place: str) -> dict[str, Tensor]:
    return {name: adapter.trained()[f"{place}.{name}"] for name in ("down", "down_bias", "up", "up_bias")}


def test_bottleneck_by_hand() -> None:
    weights = {
        "down": torch.tensor([[1.0, -1.0], [2.0, 0.0], [0.0, -3.0]]),
        "down_bias": torch.tensor([0.0, 1.0, 0.0]),
        "up": torch.tensor([[1.0, 1.0, 9.0], [0.0, -1.0, 9.0]]),
        "up_bias": torch.tensor([0.0, 0.5]),
    }
    found = bottleneck(torch.tensor([[3.0, 1.0]]), weights, scale=0.1)  # hidden: 2, 7 and a negative one
    assert torch.allclose(found, torch.tensor([[0.9, -0.65]]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ENCODERS)
def test_starts_as_the_identity_and_then_every_weight_counts(name: str, form: str) -> None:
    backbone, adapter = attached(name, form=form, size=4)
    batch = batch_of(backbone)
    plain = backbone.features(batch.inputs)
    assert torch.equal(adapter.encode(backbone, batch)[0], plain)
    weight = torch.randn(plain.shape, generator=torch.Generator().manual_seed(3))
    changed = stirred(adapter).encode(backbone, batch)[0]
    gradients = torch.autograd.grad((changed * weight).sum(), list(adapter.trained().values()))
    dead = [name for name, grad in zip(adapter.trained(), gradients, strict=True) if not grad.abs().max() > 0]
    assert not dead
    assert not torch.allclose(changed, plain, atol=1e-3)
    assert torch.equal(backbone.features(batch.inputs), plain), "outside of encode the model is as it was"


def vit_layer(layer: Any, x: Tensor, adapter: Bottleneck, index: int) -> Tensor:
    """A pre-norm layer with its bottlenecks, written out."""
    attention, _ = layer.attention(layer.layernorm_before(x), None)
    if adapter.form == "houlsby":
        attention = attention + bottleneck(attention, weights_at(adapter, f"{index}.attention"))
    x = x + attention
    mlp = layer.mlp(layer.layernorm_after(x))
    weights = weights_at(adapter, f"{index}.mlp")
    if adapter.form == "parallel":
        return x + mlp + bottleneck(x, weights, scale=0.1)
    if adapter.form == "houlsby":
        return x + mlp + bottleneck(mlp, weights)
    return x + mlp + bottleneck(x + mlp, weights)


def bert_layer(layer: Any, x: Tensor, adapter: Bottleneck, index: int) -> Tensor:
    """A post-norm layer with its bottlenecks, written out."""
    inner, _ = layer.attention.self(x, None)
    attention = layer.attention.output.dense(inner)
    if adapter.form == "houlsby":
        attention = attention + bottleneck(attention, weights_at(adapter, f"{index}.attention"))
    x = layer.attention.output.LayerNorm(attention + x)
    mlp = layer.output.dense(layer.intermediate(x))
    weights = weights_at(adapter, f"{index}.mlp")
    if adapter.form == "parallel":
        return layer.output.LayerNorm(x + mlp + bottleneck(x, weights, scale=0.1))
    if adapter.form == "houlsby":
        return layer.output.LayerNorm(x + mlp + bottleneck(mlp, weights))
    out = layer.output.LayerNorm(x + mlp)
    return out + bottleneck(out, weights)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "layer"), [("vit", vit_layer), ("bert", bert_layer)])
def test_layers_are_as_written_out(name: str, layer: Any, form: str) -> None:
    backbone, adapter = attached(name, form=form, size=4)
    stirred(adapter)
    inputs = few_inputs(backbone)
    if name == "bert":  # one row without padding, so that the layers written out need no mask
        inputs = inputs.take(torch.tensor([int(inputs.mask.sum(dim=1).argmax())]))  # type: ignore[union-attr]
    states = backbone.hidden(inputs, 0)
    for index, module in enumerate(backbone.layers):
        states = layer(module, states, adapter, index)
    expected = backbone.model.layernorm(states)[:, 0] if name == "vit" else states.mean(dim=1)
    rows = torch.zeros(len(inputs))
    found = adapter.encode(backbone, Batch((), inputs, rows, rows))[0]
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_branch_after_the_norm_would_be_caught() -> None:
    """The planted fault: reading the normed states gives other features than the test above allows."""
    backbone, adapter = attached("vit", size=4)
    stirred(adapter)
    batch = batch_of(backbone)
    found = adapter.encode(backbone, batch)[0]
    for places in find_sublayers(backbone, range(3)):
        assert places.mlp_source is vars(places.layer)["_modules"]["layernorm_after"]
    states = backbone.hidden(batch.inputs, 0)
    for index, layer in enumerate(backbone.layers):
        attention, _ = layer.attention(layer.layernorm_before(states), None)
        states = states + attention
        normed = layer.layernorm_after(states)
        states = states + layer.mlp(normed) + bottleneck(normed, weights_at(adapter, f"{index}.mlp"), scale=0.1)
    assert not torch.allclose(found, backbone.model.layernorm(states)[:, 0], atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["vit", "bert", "modernbert", "dinov2"])
def test_cached_lower_layers_change_nothing(name: str, form: str) -> None:
    backbone, adapter = attached(name, form=form, size=4, layers=[1, 2])
    stirred(adapter)
    assert adapter.lowest_layer(backbone) == 1
    assert {place.split(".")[0] for place in adapter.trained()} == {"1", "2"}
    batch = batch_of(backbone)
    resumed = batch_of(backbone, resume=(1, backbone.hidden(batch.inputs, 1)))
    assert torch.allclose(adapter.encode(backbone, resumed)[0], adapter.encode(backbone, batch)[0], atol=1e-5)


def test_dropout_works_in_training_alone() -> None:
    backbone, adapter = attached("vit", size=4, dropout=0.5)
    stirred(adapter)
    batch = batch_of(backbone)
    still = adapter.encode(backbone, batch)[0]
    assert torch.equal(still, adapter.encode(backbone, batch)[0])
    adapter.train_mode(True)
    assert not torch.allclose(still, adapter.encode(backbone, batch)[0], atol=1e-3)
    adapter.train_mode(False)
    assert torch.equal(still, adapter.encode(backbone, batch)[0])


def test_start_values_and_their_count() -> None:
    _, adapter = attached("vit", size=4)
    trained = adapter.trained()
    assert sum(value.numel() for value in trained.values()) == 3 * (2 * 4 * 32 + 4 + 32)
    assert all(not value.any() for name, value in trained.items() if not name.endswith(".down"))
    reach = max(float(value.detach().abs().max()) for name, value in trained.items() if name.endswith(".down"))
    assert 0.9 / 32**0.5 < reach <= 1 / 32**0.5  # Kaiming-uniform with a = sqrt 5
    assert not torch.equal(trained["0.mlp.down"], trained["1.mlp.down"])


@pytest.mark.parametrize("form", FORMS)
def test_passes_the_common_checks(form: str) -> None:
    def make() -> Method:
        return Method(Bottleneck(form=form, size=8, layers=[1, 2], dropout=0.1), Linear())  # type: ignore[arg-type]

    assert [problem for problem in check_method(make) if problem[1]] == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_learns_texts(name: str, form: str) -> None:
    adapter = Bottleneck(form=form, size=8)  # type: ignore[arg-type]
    learner = Learner(tiny_folder(name), Method(adapter, Linear()), train={"epochs": 8, "lr": 5e-3, "batch_size": 8})
    task = word_tasks((4,))[0]
    learner.learn(task)
    answers = learner.answers(learner.test_dataset(task))
    assert (answers == task.test.labels).mean() > 0.5
    assert learner.base_unchanged()


def test_layers_below_are_computed_once() -> None:
    learner = new_learner(Method(Bottleneck(size=4, layers="top-quarter"), Linear()))
    learner.learn(digit_tasks()[0])
    assert learner.ledger.cache_hits > 0


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="size is 0"):
        build_part("adapter", {"bottleneck": {"size": 0}})
    with pytest.raises(ConfigError, match="dropout is 1"):
        build_part("adapter", {"bottleneck": {"dropout": 1.0}})
    with pytest.raises(ConfigError, match="form"):
        build_part("adapter", {"bottleneck": {"form": "diagonal"}})
