"""APER: what its card says must hold, and the parts it is made of."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from word_tasks import ENCODERS, few_inputs, tiny_backbone, tiny_folder, word_tasks

from contune.adapter.around.with_base import WithBase
from contune.adapter.bottleneck.per_task import BottleneckPerTask
from contune.adapter.bottleneck.single import Bottleneck
from contune.adapter.lora.peft_adapter import lora
from contune.adapter.prompt.deep import DeepPrompt, with_prompts
from contune.adapter.weights.subset import full
from contune.backbone.backbone import Backbone
from contune.checks.common import check_method
from contune.checks.run import SETTINGS, digit_tasks, new_learner, tiny_model
from contune.contract.data import Batch
from contune.contract.parts import Adapter
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head.linear import Linear
from contune.head.solved.class_means import ClassMeans
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.numerics.averages import class_sums
from contune.stream.task import Kind

FORMS = ("adapter", "ssf", "vpt-shallow", "vpt-deep")


def learned(method: Method, *, kind: Kind = "class-incremental", **changes: Any) -> Learner:
    settings = SETTINGS if method.train.get("epochs", 1) else {**SETTINGS, "epochs": 0}
    learner = Learner(tiny_model(), method, kind=kind, train={**settings, **changes})
    for task in digit_tasks():
        learner.learn(task)
    return learner


def all_answers(learner: Learner) -> list[int]:
    return [int(x) for task in digit_tasks() for x in learner.answers(learner.test_dataset(task))]


def test_without_steps_the_branches_are_equal_and_the_answers_those_of_simplecil() -> None:
    aper, nmc = learned(build_method("aper", {}), epochs=0), learned(build_method("nmc", {}))
    context = aper.reading(None)
    data = aper.test_dataset(digit_tasks()[0])
    both = context.passes.features(data)
    assert torch.equal(both[:, :32], both[:, 32:])
    assert torch.equal(both[:, :32], nmc.reading(None).passes.features(nmc.test_dataset(digit_tasks()[0])))
    assert all_answers(aper) == all_answers(nmc)


@pytest.mark.parametrize("form", FORMS)
def test_only_prototypes_change_after_the_first_task(form: str) -> None:
    learner = new_learner(build_method("aper", {"form": form}))
    start = {name: value.detach().clone() for name, value in learner.method.adapter.trained().items()}
    learner.learn(digit_tasks()[0])
    after_first = {name: value.clone() for name, value in learner.state().tensors.items()}
    assert any(not torch.equal(value, after_first[f"adapter/inner/{name}"]) for name, value in start.items())
    for task in digit_tasks()[1:]:
        learner.learn(task)
    end = learner.state().tensors
    assert set(end) == set(after_first)
    for name, value in after_first.items():
        if name == "head/sums":
            assert torch.equal(value, end[name][:2])
        elif name != "head/counts":
            assert torch.equal(value, end[name]), name
    assert learner.base_unchanged()


def test_prototypes_are_those_of_one_pass_over_everything() -> None:
    learner = learned(build_method("aper", {}))
    context = learner.reading(None)
    features, labels = [], []
    for task in digit_tasks():
        features.append(context.passes.features(learner.context([task], 0).task.data))
        labels.append(torch.tensor(learner.columns(task))[torch.from_numpy(task.train.labels)])
    sums, counts = class_sums(torch.cat(features), torch.cat(labels), 6)
    state = learner.state().tensors
    assert (state["head/sums"] - sums).abs().max() < 1e-9
    assert torch.equal(state["head/counts"], counts)


@pytest.mark.parametrize("form", FORMS)
def test_without_the_second_half_it_is_simplecil(form: str) -> None:
    rate = 5.0 if form == "adapter" else 0.2  # high, so that few steps move the tiny model well
    learner, nmc = learned(build_method("aper", {"form": form}), lr=rate), learned(build_method("nmc", {}))
    state, context = learner.state().tensors, learner.reading(None)
    means = state["head/sums"] / state["head/counts"].unsqueeze(1)
    answers = []
    for task in digit_tasks():
        features = context.passes.features(learner.test_dataset(task))[:, :32].double()
        scores = functional.normalize(features, dim=1) @ functional.normalize(means[:, :32], dim=1).T
        answers += scores.argmax(dim=1).tolist()
    assert answers == all_answers(nmc)
    both = context.passes.features(learner.test_dataset(digit_tasks()[0]))
    assert (both[:, :32] - both[:, 32:]).abs().max() > 0.01, "the halves must differ, or this test shows nothing"


def test_the_joint_vector_is_normalised_as_a_whole() -> None:
    learner = learned(build_method("aper", {}))
    state, context = learner.state().tensors, learner.reading(None)
    features = context.passes.features(learner.test_dataset(digit_tasks()[0])).double()
    means = state["head/sums"] / state["head/counts"].unsqueeze(1)
    cosine = torch.nn.functional.cosine_similarity(features[:, None], means[None], dim=2)
    assert torch.allclose(context.passes.logits(learner.test_dataset(digit_tasks()[0])).double(), cosine, atol=1e-6)


def test_the_lent_head_is_a_cosine_whose_learnt_factor_starts_at_one() -> None:
    learner = new_learner(build_method("aper", {}))
    context = learner.begin(digit_tasks()[0])
    trained = dict(learner.method.head.trained())
    assert set(trained) == {"weight", "scale"}
    assert float(trained["scale"].detach()) == 1.0
    assert trained["weight"].shape == (2, 32), "it answers from the adapted model alone"
    learner.fit(context, lambda report: None)
    assert float(trained["scale"].detach()) != 1.0
    learner.end(context)
    assert not learner.method.head.trained()


def test_both_modules_are_computed_once_after_the_first_task() -> None:
    learner = learned(build_method("aper", {}))
    data = learner.test_dataset(digit_tasks()[0])
    learner.answers(data)
    before = learner.ledger.examples_forward
    learner.answers(data)
    assert learner.ledger.examples_forward == before


@pytest.mark.parametrize("form", [form for form in FORMS if form != "adapter"])  # the default form is checked by name
def test_passes_the_common_checks(form: str) -> None:
    assert [p for p in check_method(lambda: build_method("aper", {"form": form})) if p[1]] == []


@pytest.mark.parametrize("form", FORMS)
def test_learns_texts_in_tasks_of_unequal_size(form: str) -> None:
    tasks = word_tasks()
    learner = Learner(tiny_folder("bert"), "aper", form=form, train={"epochs": 4, "batch_size": 8, "min_steps": 0})
    for task in tasks:
        learner.learn(task)
    right = np.concatenate([learner.answers(d) == d.labels for d in map(learner.test_dataset, tasks)])
    assert right.mean() > 0.5  # chance is 1 in 6
    assert learner.base_unchanged()


def test_task_incremental_streams_go_through_the_adapted_model() -> None:
    learner = learned(build_method("aper", {}), kind="task-incremental")
    assert learner.state().tensors["head/sums"].shape == (6, 32)


# Parts


def batch_of(backbone: Backbone, route: int | None = None) -> Batch:
    routes = None if route is None else torch.full((3,), route)
    return Batch((), few_inputs(backbone), torch.zeros(3), torch.zeros(3), routes=routes)


@pytest.mark.parametrize("inner", [lambda: Bottleneck(size=4), lambda: lora(rank=2), lambda: DeepPrompt(length=2)])
def test_module_zero_is_the_untouched_model(inner: Any) -> None:
    plain_backbone, backbone = tiny_backbone("vit"), tiny_backbone("vit")
    adapter = WithBase(inner())
    adapter.attach(backbone, 0)
    generator = torch.Generator().manual_seed(0)
    for value in adapter.trained().values():
        value.data.add_(0.3 * torch.randn(value.shape, generator=generator))
    plain = plain_backbone.features(few_inputs(plain_backbone))
    assert torch.equal(adapter.encode(backbone, batch_of(backbone, 0))[0], plain)
    assert not torch.allclose(adapter.encode(backbone, batch_of(backbone, 1))[0], plain, atol=1e-3)
    assert adapter.routes(torch.tensor([0, 5])).tolist() == [1, 1]


def test_with_base_is_built_from_a_configuration() -> None:
    options: dict[str, Any] = {"adapter": {"bottleneck": {"size": 4}}}
    method = compose({"adapter": {"with-base": options}, "head": "class-means", "adapt": "first-task"})
    assert isinstance(method.adapter, WithBase)
    assert isinstance(method.adapter.inner, Bottleneck)
    assert method.adapter.inner.size == 4
    assert learned(method).state().tensors["head/sums"].shape == (6, 64)
    with pytest.raises(ConfigError, match="botleneck"):
        compose({"adapter": {"with-base": {"adapter": "botleneck"}}, "head": "class-means"})


def test_with_base_refuses_what_leaves_no_base() -> None:
    with pytest.raises(CombinationError, match="several modules"):
        WithBase(BottleneckPerTask())
    with pytest.raises(CombinationError, match="no untouched model"):
        WithBase(full()).attach(tiny_backbone("vit"), 0)


def test_with_base_serves_a_gradient_head_in_every_task() -> None:
    def make() -> Method:
        return Method(WithBase(Bottleneck(size=4)), Linear())

    assert [p for p in check_method(make) if p[1]] == []


def test_class_means_with_a_linear_head_is_as_before() -> None:
    states = []
    for head in (ClassMeans(), ClassMeans(auxiliary="linear"), ClassMeans(auxiliary="cosine")):
        learner = new_learner(Method(Bottleneck(size=4), head, adapt="first-task"))
        learner.learn(digit_tasks()[0])
        states.append(learner.state().tensors["head/sums"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_prompts_take_the_place_of_those_below() -> None:
    states, prompts = torch.arange(8.0).reshape(1, 4, 2), torch.full((2, 2), -1.0)
    expected = [[[-1.0, -1.0], [-1.0, -1.0], [4.0, 5.0], [6.0, 7.0]]]
    assert with_prompts(states, prompts).tolist() == expected


def deep(backbone: Backbone, length: int = 2) -> Adapter:
    adapter = DeepPrompt(length=length)
    adapter.attach(backbone, 0)
    return adapter


@pytest.mark.parametrize("name", ENCODERS)
def test_every_layer_receives_its_own_prompts_and_pools_without_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_backbone(name)
    adapter, seen = deep(backbone), []

    def watched(forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            seen.append((args[0] if args else kwargs["hidden_states"]).detach())
            return forward(*args, **kwargs)

        return run

    for layer in backbone.layers:
        monkeypatch.setattr(layer, "forward", watched(layer.forward))
    features = adapter.encode(backbone, batch_of(backbone))[0]
    prompts = adapter.trained()
    assert len({states.shape for states in seen}) == 1
    assert all(not torch.equal(seen[0][:, :2], states[:, :2]) for states in seen[1:])
    for index in (1, 2):
        assert torch.equal(seen[index][:, :2], prompts[f"layer{index}"].detach().expand(3, -1, -1))
    gradients = torch.autograd.grad(features.square().sum(), list(prompts.values()))
    assert all(bool(grad.abs().max() > 0) for grad in gradients)


def test_deep_prompts_are_those_of_the_released_order_too() -> None:
    """Prompts behind the patches, cut off after every layer, give the same class token: attention has no order."""
    backbone = tiny_backbone("vit")
    adapter = deep(backbone)
    inputs = few_inputs(backbone)
    states = backbone.hidden(inputs, 0)
    for index, layer in enumerate(backbone.layers):
        own = adapter.trained()[f"layer{index}"].expand(3, -1, -1)
        states = layer(torch.cat([states, own], dim=1), None)[:, : states.shape[1]]
    expected = backbone.model.layernorm(states)[:, 0]
    assert torch.allclose(adapter.encode(backbone, batch_of(backbone))[0], expected, atol=1e-5)


def test_deep_prompts_pass_the_common_checks() -> None:
    assert [p for p in check_method(lambda: Method(DeepPrompt(length=3), Linear())) if p[1]] == []
