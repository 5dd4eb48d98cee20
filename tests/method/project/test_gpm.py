"""GPM: weights move only where old inputs do not reach, whatever the optimizer does; growth, energy, and what rests."""

from typing import Any, ClassVar, final

import pytest
import torch
from resume_helpers import difference_after_a_stop
from torch import Tensor, nn
from word_tasks import tiny_folder, word_tasks

from contune.adapter.weights.subset import full
from contune.checks.run import SETTINGS, digit_tasks, tiny_model
from contune.contract.context import Context
from contune.contract.parts import Rule, Tensors
from contune.engine.learner import Learner
from contune.errors import CombinationError, ConfigError
from contune.head.linear import Linear
from contune.method.catalog import build_method, compose
from contune.method.method import Method
from contune.numerics.subspaces import Subspace, closing_threshold, token_rows
from contune.rule.project.gradient_projection import GradientProjection, is_transposed, linear_modules, still
from contune.stream.task import Task

ADAMW = {**SETTINGS, "lr": 2e-3, "weight_decay": 0.1, "optimizer": "adamw"}
SGD = {**SETTINGS, "lr": 0.02, "weight_decay": 0.1, "optimizer": "sgd", "momentum": 0.9}
PLAIN_SGD = {**SETTINGS, "lr": 0.02, "optimizer": "sgd", "momentum": 0.0, "clip": None}


@final
class GradientHook(Rule):
    """The planted fault: projects the gradient, as the paper's code does, and lets the optimizer do what it likes."""

    name: ClassVar[str] = "gradient-hook"

    def __init__(self, inner: GradientProjection) -> None:
        self.inner = inner

    def gradients(self, context: Context, gradients: Tensors) -> Tensors:
        return self.inner.updates(context, gradients)

    def end_task(self, context: Context) -> None:
        self.inner.end_task(context)


def model_of(case: str) -> str:
    return tiny_model() if case == "digits" else str(tiny_folder(case))


def tasks_of(case: str) -> list[Task]:
    return list(digit_tasks()) if case == "digits" else word_tasks((2, 2, 2))


def gpm_learner(case: str = "digits", train: dict[str, Any] = ADAMW, **options: Any) -> Learner:
    return Learner(model_of(case), build_method("gpm", {"lr_scale": 1.0, **options}), train=train, device="cpu")


def hooked_learner(train: dict[str, Any]) -> Learner:
    rule = GradientHook(GradientProjection())
    return Learner(tiny_model(), Method(full(lr_scale=1.0), Linear(loss_over="own-task"), (rule,)), train=train)


def rule_of(learner: Learner) -> GradientProjection:
    (rule,) = learner.method.rules
    found = rule.inner if isinstance(rule, GradientHook) else rule
    assert isinstance(found, GradientProjection)
    return found


def spaces_of(learner: Learner) -> dict[str, Subspace]:
    """The subspace of every linear weight's old inputs, by the weight's name."""
    memory = rule_of(learner)._memory
    found = {name: memory.space(name) for name in memory.leaders}
    return {name: space for name, space in found.items() if space is not None}


def weights_of(learner: Learner) -> dict[str, Tensor]:
    """Copies of the linear weights as (d_out, d_in), by the name in the context."""
    model, spaces, found = learner.backbone.model, spaces_of(learner), {}
    own = {f"adapter.{name}": module for name, module in named_weights(model).items()}
    for name in spaces:
        weight = own[name].weight.detach().clone()
        found[name] = weight.T if is_transposed(own[name]) else weight
    return found


def named_weights(model: nn.Module) -> dict[str, nn.Module]:
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) or is_transposed(m)}
    return {f"{name}.weight": module for name, module in linear.items()}


def leaks(learner: Learner, task: Task) -> list[float]:
    """Learn one more task; the largest |(W_new - W_old) U| of every linear weight."""
    before, bases = weights_of(learner), {name: space.basis() for name, space in spaces_of(learner).items()}
    learner.learn(task)
    after = {name: value for name, value in weights_of(learner).items() if name in before}
    assert all(float((after[name] - before[name]).abs().max()) > 1e-4 for name in before), "nothing was learned"
    return [float(((after[name] - before[name]).double() @ bases[name]).abs().max()) for name in before]


def inputs_of(context: Context, module: nn.Module) -> Tensor:
    """What a module reads (n, d) in one pass over the task, without padding."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: found.append(args[0]))
    rows = []
    with torch.no_grad():
        for batch in context.passes.batches(context.task.data):
            context.model.encode(batch)
            rows += [token_rows(each, batch.inputs.mask) for each in found]
            found.clear()
    handle.remove()
    return torch.cat(rows)


@pytest.mark.parametrize("case", ["digits", "bert", "modernbert", "gpt2"])
@pytest.mark.parametrize("train", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_steps_are_orthogonal_to_old_inputs(case: str, train: dict[str, Any]) -> None:
    learner = gpm_learner(case, train)
    first, second, third = tasks_of(case)
    learner.learn(first)
    found = leaks(learner, second)
    assert len(found) >= 12
    assert max(found) < 1e-6
    assert max(leaks(learner, third)) < 1e-6


@pytest.mark.parametrize("train", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_a_gradient_hook_leaks(train: dict[str, Any]) -> None:
    learner = hooked_learner(train)
    learner.learn(digit_tasks()[0])
    assert max(leaks(learner, digit_tasks()[1])) > 1e-4


def test_with_plain_sgd_moves_and_gradients_are_one() -> None:
    ours, hooked = gpm_learner("digits", PLAIN_SGD), hooked_learner(PLAIN_SGD)
    for learner in (ours, hooked):
        for task in digit_tasks()[:2]:
            learner.learn(task)
    for name, value in weights_of(ours).items():
        torch.testing.assert_close(value, weights_of(hooked)[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_subspaces_hold_the_threshold_and_grow(case: str) -> None:
    learner = gpm_learner(case, threshold=0.9, growth=0.5)
    sizes: dict[str, list[int]] = {}
    old: dict[str, Tensor] = {}
    for number, task in enumerate(tasks_of(case)):
        context = learner.begin(task)
        learner.fit(context, lambda report: None)
        learner.end(context)
        threshold = closing_threshold(0.9, 0.5, number)
        modules = linear_modules(context)
        for name, space in spaces_of(learner).items():
            rows, basis = inputs_of(context, modules[name]).double(), space.basis()
            projector = basis @ basis.T
            assert float((rows @ projector).square().sum() / rows.square().sum()) >= threshold - 1e-5
            if name in old:
                torch.testing.assert_close(projector @ old[name], old[name], atol=1e-5, rtol=0)
            old[name] = projector
            sizes.setdefault(name, []).append(space.size())
    assert all(found == sorted(found) for found in sizes.values())
    assert any(found[0] < found[-1] for found in sizes.values())
    assert all(0 < found[0] < 64 for found in sizes.values())


def test_the_first_subspace_is_the_smallest_that_will_do() -> None:
    """Against the singular values of the inputs themselves (equation 5)."""
    learner = gpm_learner(threshold=0.8)
    context = learner.begin(digit_tasks()[0])
    learner.fit(context, lambda report: None)
    learner.end(context)
    modules = linear_modules(context)
    for name, space in spaces_of(learner).items():
        energies = torch.linalg.svdvals(inputs_of(context, modules[name]).double()).square()
        shares = energies.cumsum(0) / energies.sum()
        assert space.size() == int((shares < 0.8).sum()) + 1


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_old_inputs_are_answered_as_before(case: str) -> None:
    """Every layer answers what its subspace holds of old inputs as before; biases rest after the first task."""
    learner = gpm_learner(case, threshold=0.9)
    first, second = tasks_of(case)[:2]
    context = learner.begin(first)
    learner.fit(context, lambda report: None)
    learner.end(context)
    modules = linear_modules(context)
    kept = {}
    for name, space in spaces_of(learner).items():
        basis = space.basis()
        inside = (inputs_of(context, modules[name]).double() @ basis @ basis.T).float()
        with torch.no_grad():
            kept[name] = (inside, modules[name](inside))
    learner.learn(second)
    for name, (inside, before) in kept.items():
        with torch.no_grad():
            torch.testing.assert_close(modules[name](inside), before, atol=1e-5, rtol=1e-5)


def test_features_of_old_examples_hardly_drift() -> None:
    drifts = []
    for threshold in (0.0, 0.9999):
        learner = gpm_learner(threshold=threshold)
        first, second = digit_tasks()[:2]
        learner.learn(first)
        data = learner.test_dataset(first)
        before = learner.reading(data).passes.features(data)
        learner.learn(second)
        drifts.append(float((learner.reading(data).passes.features(data) - before).square().mean()))
    assert drifts[1] < 0.05 * drifts[0]


@pytest.mark.parametrize("case", ["digits", "bert"])
def test_other_tensors_learn_in_the_first_task_only(case: str) -> None:
    learner = gpm_learner(case, {**ADAMW, "weight_decay": 0.0})
    first, second = tasks_of(case)[:2]
    others: list[dict[str, Tensor]] = []
    for task in (first, second):
        context = learner.begin(task)
        others.append({n: v.detach().clone() for n, v in context.model.trained().items() if n.startswith("adapter.")})
        heads = {n: v.detach().clone() for n, v in context.model.trained().items() if n.startswith("head.")}
        learner.fit(context, lambda report: None)
        after = {n: v.detach().clone() for n, v in context.model.trained().items()}
        learner.end(context)
    linear = set(spaces_of(learner))
    assert {n for n, v in others[1].items() if not torch.equal(v, after[n])} == linear
    moved = {n for n, v in others[0].items() if not torch.equal(v, others[1][n])}
    assert {n for n in others[0] if "norm" in n.lower()} <= moved
    assert len(moved - linear) > 10
    assert all(torch.equal(after[n][:2], v[:2]) and not torch.equal(after[n], v) for n, v in heads.items())


def test_queries_keys_and_values_share_one_subspace() -> None:
    learner = gpm_learner()
    learner.learn(digit_tasks()[0])
    memory = rule_of(learner)._memory
    assert len(memory.leaders) == 18
    assert len(memory.spaces) == 12


def test_without_subspaces_everything_may_move() -> None:
    updates = {"adapter.weight": torch.ones(2, 2), "adapter.bias": torch.ones(2), "head.weight": torch.ones(1)}
    rested = still(updates, ["adapter.weight"])
    assert {name: float(update.sum()) for name, update in rested.items()} == {
        "adapter.weight": 4.0,
        "adapter.bias": 0.0,
        "head.weight": 1.0,
    }
    learner = gpm_learner()
    assert rule_of(learner).updates(learner.begin(digit_tasks()[0]), updates) is updates


def test_it_works_on_lora() -> None:
    method = compose({"adapter": "lora", "head": "linear", "rules": [{"gradient-projection": {"threshold": 0.9}}]})
    learner = Learner(tiny_model(), method, train=ADAMW, device="cpu")
    learner.learn(digit_tasks()[0])
    rule = rule_of(learner)
    context = learner.begin(digit_tasks()[1])
    before = {name: value.detach().clone() for name, value in context.model.trained().items()}
    learner.fit(context, lambda report: None)
    names = [name for name in before if name.startswith("adapter.")]
    assert set(names) == set(rule._memory.leaders)
    for name in names:
        space = rule._memory.space(name)
        assert space is not None
        change = (context.model.trained()[name].detach() - before[name]).double()
        assert float((change @ space.basis()).abs().max()) < 1e-6
        assert space.size() == space.columns.shape[0] or float(change.abs().max()) > 0


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(CombinationError, match="weights of linear layers"):
        compose({"adapter": "bottleneck", "rules": ["gradient-projection"]})
    for options in ({"threshold": 1.0}, {"growth": -0.1}):
        with pytest.raises(ConfigError, match="at least 0"):
            GradientProjection(**options)


@pytest.mark.parametrize("case", ["bert", "gpt2"])
def test_texts_resume_exactly(case: str) -> None:
    learner, again = gpm_learner(case), gpm_learner(case)
    assert difference_after_a_stop(learner, again, word_tasks()) is None
