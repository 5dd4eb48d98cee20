"""An adapter that no file of the library knows works with every rule whose needs it meets."""

from collections.abc import Mapping
from typing import Any, ClassVar, final

import pytest
from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.backbone.linear import Matrix, is_linear, linear_layers
from contune.checks.common import check_method
from contune.checks.run import digit_tasks, new_learner
from contune.contract.capability import BaseMatrices, LinearWeights, find
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Adapter, Parameters
from contune.contract.state import State
from contune.errors import CombinationError
from contune.head.linear import Linear
from contune.method.catalog import build_part, parts
from contune.method.method import Method

RULES = ["gradient-projection", "activation-mask", "cuber", "principal-mask", "singular-subspace", "ewc", "ema"]


@final
class LastBlock(Adapter):
    """Trains the weights of the linear layers of the model's last block."""

    name: ClassVar[str] = "last-block"
    matrices_only = True
    lr_scale = 0.1

    def __init__(self) -> None:
        self.weights: dict[str, nn.Parameter] = {}
        self.block: nn.Module | None = None

    def attach(self, backbone: Backbone, seed: int) -> None:
        self.block = backbone.layers[-1]
        for name, layer in self.block.named_modules():
            if is_linear(layer):
                self.weights[name] = layer.get_parameter("weight").requires_grad_(True)

    def trained(self) -> Parameters:
        return self.weights

    def linear(self) -> Mapping[str, nn.Module]:
        assert self.block is not None
        return linear_layers(self.block, self.weights)

    def matrices(self) -> Mapping[str, Matrix]:
        return {name: Matrix(self.weights[name], layer) for name, layer in self.linear().items()}

    def lowest_layer(self, backbone: Backbone) -> int:
        return backbone.depth - 1

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return backbone.features(batch.inputs, resume=batch.resume), None

    def state(self) -> State:
        return State({name: weight.detach() for name, weight in self.weights.items()})

    def load_state(self, state: State, context: Context) -> None:
        for name, weight in self.weights.items():
            weight.data.copy_(state.tensors[name])


def method_of(rule: Any) -> Method:
    return Method(LastBlock(), Linear(loss_over="own-task"), (build_part("rule", rule),))


def test_it_has_what_it_has_the_members_of() -> None:
    adapter = LastBlock()
    assert find(adapter, LinearWeights) is adapter
    assert find(adapter, BaseMatrices) is adapter


@pytest.mark.parametrize("rule", RULES[:2])
def test_it_passes_the_common_checks(rule: str) -> None:
    assert [found for found in check_method(lambda: method_of(rule)) if found[1]] == []


def test_it_is_taken_by_all_whose_needs_it_meets_and_refused_by_the_others() -> None:
    taken = []
    for name in parts("rule"):
        try:
            method_of(name)
        except CombinationError:
            continue
        taken.append(name)
    assert set(RULES) <= set(taken)
    assert not {"orthogonality", "lottery-ticket", "attentive-reflection", "preallocation"} & set(taken)


def test_gradient_projection_keeps_its_steps_out_of_old_inputs() -> None:
    method = method_of({"gradient-projection": {"threshold": 0.9}})
    learner = new_learner(method)
    first, second, _ = digit_tasks()
    learner.learn(first)
    context = learner.begin(second)
    memory = method.rules[0]._memory  # type: ignore[attr-defined]
    spaces = {name: memory.space(f"adapter.{name}") for name in method.adapter.trained()}
    before = {name: weight.detach().clone() for name, weight in method.adapter.trained().items()}
    learner.fit(context, lambda report: None)
    moved = 0.0
    for name, weight in method.adapter.trained().items():
        change = (weight.detach() - before[name]).double()
        moved = max(moved, float(change.abs().max()))
        assert float((change @ spaces[name].basis()).abs().max()) < 1e-6
    assert moved > 1e-4
