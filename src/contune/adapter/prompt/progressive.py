"""One prompt per task in front of the prompts of all tasks before it (Progressive Prompts, arXiv 2301.12314)."""

from typing import Annotated, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.adapter.prompt.prefix import normal
from contune.adapter.task_sets import TaskSets
from contune.backbone.backbone import Backbone
from contune.contract.capability import Lifetime
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Adapter, Parameters, Tensors
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.errors import CombinationError, ConfigError


def reparametrised(tokens: Tensor, network: Tensors) -> Tensor:
    """P + up(relu(down(P))) of a prompt P (n, d): the residual network of section 3; without one the prompt itself.

    >>> one = torch.ones(1, 1)
    >>> network = {"down.weight": one, "down.bias": one[0], "up.weight": 3 * one, "up.bias": 0 * one[0]}
    >>> reparametrised(2 * one, network).item(), reparametrised(2 * one, {}).item()
    (11.0, 2.0)
    """
    if not network:
        return tokens
    inner = functional.relu(functional.linear(tokens, network["down.weight"], network["down.bias"]))
    return tokens + functional.linear(inner, network["up.weight"], network["up.bias"])


def fresh_network(width: int, bottleneck: int, seed: int, *purpose: int | str) -> dict[str, Tensor]:
    """Two linear layers, width -> bottleneck -> width, uniform in +-1/sqrt(inputs) as torch starts them."""
    network = {}
    for name, inputs, outputs in (("down", width, bottleneck), ("up", bottleneck, width)):
        for kind, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
            generator = torch_generator(seed, "prompt network", *purpose, name, kind)
            network[f"{name}.{kind}"] = (torch.rand(shape, generator=generator) * 2 - 1) / inputs**0.5
    return network


def vocabulary_start(backbone: Backbone, length: int, seed: int, *purpose: int | str) -> Tensor | None:
    """The embeddings (length, d) of so many random tokens; None where the model reads no words."""
    if not backbone.reads_tokens:
        return None
    words = backbone.model.get_input_embeddings()
    generator = torch_generator(seed, "prompt words", *purpose)
    chosen = torch.randint(words.weight.shape[0], (length,), generator=generator)
    with torch.no_grad():
        start: Tensor = words(chosen.to(words.weight.device)).float()
    return start if start.shape[1] == backbone.parts.prompt_width else None


def require_context(limit: int | None, prompts: int, tokens: int) -> None:
    """Refuse what does not fit in the model's positions.

    >>> require_context(None, 500, 500)
    """
    if limit is not None and prompts + tokens > limit:
        raise CombinationError(
            f"{prompts} tokens of prompts and {tokens} of text and answer do not fit in the model's {limit} positions, and "
            f"progressive prompts add some with every task; set model.max_length to at most {max(limit - prompts, 1)}, "
            "lower length, or take prompt-per-task, which does not grow"
        )


@final
class ProgressivePrompts(Adapter):
    """Module t is the frozen model with [P_t; P_t-1; ...; P_1; input]: prompts of `length` tokens, the newest first.

    Only the newest prompt is trained and module j sees prompts 1 to j alone, so no later task changes what it answers.
    With `bottleneck` the prompt is P + MLP(P) of a residual network that is trained with it; at the end of the task the
    result is stored and the network dropped. A prompt starts from the embeddings of random tokens of the vocabulary, drawn
    with replacement as in the released code; for images, which have none, from small normal values. Prompts come before
    the first token and its position; all that is learned or asked must fit behind them, else a sentence says so and no
    input is cut. Length 0 is the frozen model. Where the adapter learns in the first task only, later tasks go through
    the first prompt. Memory: length x d per task. Compute: the sequence is `length` longer with every task.
    """

    name: ClassVar[str] = "progressive-prompts"
    supports_packing: ClassVar[bool] = False
    expands = True
    lifetime = Lifetime.PER_MODULE

    def __init__(
        self,
        *,
        length: Annotated[int, "tokens that each task's prompt adds; 0: the frozen model", "released script"] = 10,
        bottleneck: Annotated[int, "hidden units of a network over a new prompt; 0: none", "released script"] = 0,
    ) -> None:
        if length < 0 or bottleneck < 0:
            raise ConfigError(f"length is {length} and bottleneck {bottleneck}; give 0 or more, 0 for none")
        self.length, self.bottleneck = length, bottleneck
        self._seed = 0
        self._prompts = TaskSets()
        self._network: dict[str, nn.Parameter] = {}

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._seed = seed

    def begin_task(self, context: Context) -> None:
        task = len(self._prompts)
        if task and not context.model.adapter_trainable:
            return
        backbone = context.model.backbone
        longest = int(context.task.data.prepared.lengths.max(initial=0))
        if self.length:
            require_context(backbone.parts.position_limit, (task + 1) * self.length, longest)
        self._prompts.append(self._start(backbone, task), backbone.device, context.task.index)
        if self.length and self.bottleneck:
            width = backbone.parts.prompt_width
            self._set_network(fresh_network(width, self.bottleneck, self._seed, task), backbone.device)

    def _start(self, backbone: Backbone, task: int) -> dict[str, Tensor]:
        if not self.length:
            return {}
        words = vocabulary_start(backbone, self.length, self._seed, task)
        shape, name = (self.length, backbone.parts.prompt_width), f"prompt of task {task}"
        return {"tokens": normal(shape, self._seed, name, backbone.device) if words is None else words}

    def _set_network(self, values: Tensors, device: torch.device) -> None:
        self._network = {name: nn.Parameter(value.detach().clone().to(device)) for name, value in values.items()}

    def end_task(self, context: Context) -> None:
        if self._network:
            newest = self._prompts[len(self._prompts) - 1]["tokens"]
            with torch.no_grad():
                newest.copy_(reparametrised(newest, self._network))
            self._network = {}
        self._prompts.finish()

    def trained(self) -> Parameters:
        last = len(self._prompts) - 1
        network = {f"task{last}.network.{name}": value for name, value in self._network.items()}
        return {**self._prompts.trained(), **network}

    def lowest_layer(self, backbone: Backbone) -> int:
        return 0 if self.length else backbone.depth

    def prompts(self, module: int) -> Tensor:
        """What stands in front of the input of a module ((module + 1) x length, d), the newest prompt first."""
        newest: Tensor = self._prompts[module]["tokens"]
        if module == len(self._prompts) - 1:
            newest = reparametrised(newest, self._network)
        older = [self._prompts[task]["tokens"].detach() for task in range(module - 1, -1, -1)]
        return torch.cat([newest, *older])

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if not self.length:
            return backbone.features(batch.inputs, resume=batch.resume), None
        prompts = self.prompts(batch.route)
        if batch.inputs.max_new_tokens and batch.inputs.ids is not None:
            tokens = batch.inputs.ids.shape[1] + batch.inputs.max_new_tokens
            require_context(backbone.parts.position_limit, len(prompts), tokens)
        return backbone.features(batch.inputs, prompts=prompts), None

    def modules(self) -> int:
        return len(self._prompts)

    def routes(self, tasks: Tensor) -> Tensor:
        return self._prompts.routes(tasks)

    def module_state(self, module: int) -> State | None:
        done = [self._prompts.done(task) for task in range(module + 1)]
        if any(state is None for state in done):
            return None
        return State.nested({f"task{task}": state for task, state in enumerate(done) if state is not None})

    def state(self) -> State:
        network = State({name: value.detach() for name, value in self._network.items()})
        return State.nested({"prompts": self._prompts.state(), "network": network})

    def load_state(self, state: State, context: Context) -> None:
        self._prompts.load_state(state.inner("prompts"), context.model.backbone.device)
        self._set_network(state.inner("network").tensors, context.model.backbone.device)
