"""Full fine-tuning by depth: rates that fall with it, layers that rest, layers that start anew."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from language_tasks import experience
from resume_helpers import go_on, learn_keeping
from torch import Tensor, nn
from word_tasks import tiny_backbone, tiny_folder, word_tasks

from contune.adapter.weights.depths import Stability, depths_below_head, unit_gain
from contune.checks.run import SETTINGS, copied, digit_tasks, same_state, tiny_model
from contune.contract.context import Context
from contune.contract.settings import CacheSettings
from contune.engine.learner import Learner
from contune.engine.steps.optimizer import make_optimizer
from contune.errors import CombinationError, ConfigError
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.stream.task import Task

HARSH = {**SETTINGS, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1, "lr": 0.05}
CASES = ["digits", "bert", "llama-writer"]
TEXTS = ["bert", "roberta", "distilbert", "minilm", "modernbert", "llama", "gpt2", "t5"]
LAYERS = 3


def tasks_of(case: str) -> list[Task]:
    if case.endswith("writer"):
        return [experience("big"), experience("red", "red", "blue"), experience("old", "old", "new")]
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def learner_of(case: str, method: str | Method, train: dict[str, Any] | None = None, **more: Any) -> Learner:
    model = tiny_model() if case == "digits" else str(tiny_folder(case))
    objective = "write" if case.endswith("writer") else "classify"
    return Learner(model, method, objective=objective, train=train or SETTINGS, **more)


def rates_of(context: Context) -> dict[str, float]:
    """What the optimizer really gives every trained tensor, as a multiple of the learning rate."""
    names = {id(parameter): name for name, parameter in context.model.trained().items()}
    groups = make_optimizer(context).param_groups
    return {names[id(p)]: group["full_lr"] / context.task.settings.lr for group in groups for p in group["params"]}


def layer_of(context: Context, name: str) -> int | None:
    """The layer that a trained base parameter lies in, from below."""
    wanted = context.model.trained()[name]
    for index, layer in enumerate(context.model.backbone.layers):
        if any(parameter is wanted for parameter in layer.parameters()):
            return index
    return None


def base_values(learner: Learner) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in learner.backbone.base_parameters().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def bottom_of(learner: Learner, layers: int) -> set[str]:
    """The names of the embeddings and of the lowest layers."""
    depth = learner.backbone.depth
    return {name for name, below in depths_below_head(learner.backbone).items() if below > depth - layers}


def wrong_rates(rates: dict[str, float], context: Context, decay: float, scale: float) -> list[str]:
    """Trained tensors whose rate is not what the docstring says, found without the code that made it."""
    wrong = []
    for name, rate in rates.items():
        layer, own = layer_of(context, name), name.partition(".")[2]
        embeds = any(word in own for word in ("embed", "wte", "wpe", "token", "pre_layrnorm", "shared"))
        power = LAYERS - layer if layer is not None else LAYERS + 1 if embeds else 0
        expected = 1.0 if name.startswith("head.") else scale * decay**power
        wrong += [] if rate == pytest.approx(expected, rel=1e-9) else [name]
    return wrong


@pytest.mark.parametrize("case", ["digits", *TEXTS, "llama-writer", "gpt2-writer", "deit", "dinov2", "clip-vision"])
def test_every_tensor_learns_at_the_rate_of_its_depth(case: str) -> None:
    learner = learner_of(case, build_method("stable-finetune", {"decay": 0.5, "lr_scale": 0.1}))
    image = case in ("digits", "deit", "dinov2", "clip-vision")
    context = learner.begin(tasks_of("digits" if image else case)[0])
    rates = rates_of(context)
    assert wrong_rates(rates, context, 0.5, 0.1) == []
    found = {layer_of(context, name) for name in rates} | {None}
    assert found == {None, 0, 1, 2}
    for layer in (1, 2):
        here = {rate for name, rate in rates.items() if layer_of(context, name) == layer}
        under = {rate for name, rate in rates.items() if layer_of(context, name) == layer - 1}
        assert len(here) == len(under) == 1  # norms and biases too
        assert here.pop() / under.pop() == pytest.approx(1 / 0.5)
    assert min(rates.values()) == pytest.approx(0.1 * 0.5 ** (LAYERS + 1))  # embeddings, tied ones too


def test_a_reversed_decay_would_be_noticed() -> None:
    context = learner_of("bert", "stable-finetune").begin(tasks_of("bert")[0])
    rates = rates_of(context)
    assert wrong_rates(rates, context, 0.9, 0.01) == []
    reversed_ = {name: 1e-4 / rate if name.startswith("adapter.") else rate for name, rate in rates.items()}
    assert len(wrong_rates(reversed_, context, 0.9, 0.01)) > 10


@pytest.mark.parametrize("case", CASES)
def test_a_decay_of_one_is_finetune_to_the_bit(case: str) -> None:
    plain = learner_of(case, build_method("finetune", {"loss_over": "seen"}))
    gentle = learner_of(case, build_method("stable-finetune", {"decay": 1.0}))
    for task in tasks_of(case)[:2]:
        plain.learn(task)
        gentle.learn(task)
    assert same_state(plain.state(), gentle.state()) is None
    context = gentle.begin(tasks_of(case)[2])
    assert {rate for name, rate in rates_of(context).items() if name.startswith("adapter.")} == {0.01}


def test_lower_layers_move_less() -> None:
    learner = learner_of(
        "bert", build_method("stable-finetune", {"decay": 0.1, "lr_scale": 1.0}), {**SETTINGS, "lr": 1e-3}
    )
    before = base_values(learner)
    learner.learn(tasks_of("bert")[0])
    after, depths = base_values(learner), depths_below_head(learner.backbone)
    largest = [
        max((after[n] - before[n]).abs().max().item() for n, d in depths.items() if d == at) for at in (1, 2, 3, 4)
    ]
    assert all(higher > 5 * lower > 0 for higher, lower in pairwise(largest))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frozen", [0, 1, 2, 9])
def test_what_is_frozen_keeps_every_byte(case: str, frozen: int) -> None:
    learner = learner_of(case, build_method("stable-finetune", {"frozen": frozen}), HARSH)
    before, still = base_values(learner), bottom_of(learner, min(frozen, LAYERS - 1))
    trained = learner.method.adapter.trained()
    total = sum(value.numel() for value in before.values())
    assert sum(p.numel() for p in trained.values()) == total - sum(before[name].numel() for name in still)
    assert any("embed" in name for name in still)
    for task in tasks_of(case)[:2]:
        learner.learn(task)
    changed = moved(before, base_values(learner))
    assert not changed & still
    assert changed == set(trained) - {name for name in trained if "pooler" in name}
    assert learner.method.adapter.lowest_layer(learner.backbone) == min(frozen, LAYERS - 1)


def test_states_below_frozen_layers_are_cached_and_right() -> None:
    learners = [
        learner_of("bert", build_method("stable-finetune", {"frozen": 2}), cache=CacheSettings(hidden=hidden))
        for hidden in (True, False)
    ]
    for task in tasks_of("bert"):
        for learner in learners:
            learner.learn(task)
    assert learners[0].ledger.cache_hits > learners[1].ledger.cache_hits
    kept, computed = (base_values(learner) for learner in learners)
    assert all(torch.allclose(kept[name], computed[name], atol=1e-4) for name in kept)


@pytest.mark.parametrize("case", [*CASES, "gpt2-writer", "modernbert"])
def test_top_layers_start_anew_when_the_first_task_begins(case: str) -> None:
    learner = learner_of(case, build_method("stable-finetune", {"reset": 2}))
    before = base_values(learner)
    assert learner.base_unchanged()  # a probe before the first task still sees the model as it was loaded
    learner.begin(tasks_of(case)[0])
    after, depths = base_values(learner), depths_below_head(learner.backbone)
    top = {name for name, below in depths.items() if below in (1, 2)}
    assert moved(before, after) <= top
    matrices = {name for name in top if after[name].dim() > 1}
    assert matrices <= moved(before, after)
    for name in top:
        value = after[name]
        if value.dim() > 1:
            assert value.std().item() == pytest.approx(0.02, rel=0.2)
            assert abs(value.mean().item()) < 0.005
        else:
            assert value.unique().tolist() == [0.0 if name.endswith("bias") else 1.0]


def test_new_layers_differ_from_each_other_and_come_once() -> None:
    learner = learner_of("bert", build_method("stable-finetune", {"reset": 2}))
    first, second, _ = tasks_of("bert")
    learner.learn(first)
    learned = base_values(learner)
    learner.begin(second)
    assert not moved(learned, base_values(learner))
    other = learner_of("bert", build_method("stable-finetune", {"reset": 2}), {**SETTINGS, "seed": 1})
    other.begin(first)
    again = learner_of("bert", build_method("stable-finetune", {"reset": 2}))
    again.begin(first)
    one, two = ({n: v for n, v in base_values(each).items() if "query.weight" in n} for each in (other, again))
    assert set(one) - moved(one, two) == {name for name in one if ".0." in name}
    values = [value for name, value in two.items() if ".0." not in name]
    assert not torch.equal(values[0], values[1])


def test_a_norm_that_adds_one_starts_at_zero() -> None:
    class GemmaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((4,), 0.3))

        def forward(self, states: Tensor) -> Tensor:
            return states * (1 + self.weight)

    norm = GemmaRMSNorm()
    assert unit_gain(norm, norm.weight).tolist() == [0.0] * 4
    assert norm.weight.tolist() == pytest.approx([0.3] * 4)


OPTIONS = [
    ("stable-finetune", {"decay": 0.7, "frozen": 1, "reset": 1}),
    ("stable-finetune", {"reset": 3}),
    ("freeze", {}),
    ("freeze", {"layers": 1, "learns_first": False}),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_it_resumes_exactly_inside_a_task(case: str, name: str, options: dict[str, Any]) -> None:
    learner, again, other = (learner_of(case, build_method(name, options)) for _ in range(3))
    first, second, third = tasks_of(case)
    early = learn_keeping(learner, first)
    halfway = learn_keeping(learner, second)
    boundary = copied(learner.state())
    learner.learn(third)
    go_on(other, early)
    other.learn(second)
    assert same_state(boundary, other.state()) is None
    go_on(again, halfway)
    again.learn(third)
    assert same_state(learner.state(), again.state()) is None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["freeze", "finetune"])
def test_freeze_moves_the_bottom_in_the_first_task_alone(case: str, name: str) -> None:
    learner = learner_of(case, name, HARSH)
    bottom, before = bottom_of(learner, LAYERS - 1), base_values(learner)
    assert "embeddings" in str(bottom) or "embed_tokens" in str(bottom)
    first, *later = tasks_of(case)
    learner.learn(first)
    after = base_values(learner)
    assert moved(before, after) >= bottom - {n for n in bottom if "token_type" in n}
    for task in later:
        context = learner.begin(task)
        learner.fit(context, lambda report: None)
        learner.end(context)
        resting = bottom & {name.partition(".")[2] for name in context.model.trained()}
        assert bool(resting) == (name == "finetune")
    changed = moved(after, base_values(learner))
    assert changed - bottom
    assert bool(changed & bottom) == (name == "finetune")  # finetune is the planted fault
    assert learner.method.adapter.lowest_layer(learner.backbone) == 0  # what was trained is not the model as loaded


def test_freeze_from_the_first_task_on() -> None:
    learner = learner_of("bert", build_method("freeze", {"layers": 1, "learns_first": False}), HARSH)
    before = base_values(learner)
    for task in tasks_of("bert"):
        learner.learn(task)
    assert not moved(before, base_values(learner)) & bottom_of(learner, 1)
    assert learner.method.adapter.lowest_layer(learner.backbone) == 1


def test_freezing_goes_with_rules_that_remember_weights() -> None:
    adapter = {"full": {"frozen": 1, "frozen_from": 1}}
    learner = learner_of("bert", compose({"adapter": adapter, "rules": ["ewc"]}))
    before = base_values(learner)
    for task in tasks_of("bert"):
        learner.learn(task)
    assert moved(before, base_values(learner))


def test_what_makes_no_sense_is_refused() -> None:
    for options, reason in (
        ({"decay": 0.0}, "decay is 0.0"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"frozen": -1}, "give 0 or more"),
    ):
        with pytest.raises(ConfigError, match=reason):
            build_method("stable-finetune", options)
    with pytest.raises(ConfigError, match="only 1 layers of this model are trained"):
        learner_of("bert", build_method("stable-finetune", {"frozen": 2, "reset": 2}))
    narrow = learner_of("bert", compose({"adapter": {"full": {"layers": [0, 1], "reset": 1}}}))
    with pytest.raises(ConfigError, match="not wholly trained"):
        narrow.begin(tasks_of("bert")[0])
    for name in ("stable-finetune", "freeze"):
        with pytest.raises(CombinationError, match="one stack of layers"):
            learner_of("t5-writer", name)


def test_depths_by_hand() -> None:
    depths = depths_below_head(tiny_backbone("modernbert"))
    assert depths["final_norm.weight"] == 0
    assert {depths[name] for name in depths if name.startswith("layers.2.")} == {1}
    assert {depths[name] for name in depths if name.startswith("layers.0.")} == {3}
    assert {depths[name] for name in depths if name.startswith("embeddings.")} == {4}
    assert not Stability().needs_depths
