"""One prompt at the input per task, each trained on its own (S-Prompts, arXiv 2207.12819)."""

from typing import Annotated, ClassVar, final

from torch import Tensor

from contune.adapter.prompt.prefix import normal
from contune.adapter.task_sets import TaskSets
from contune.backbone.backbone import Backbone
from contune.contract.capability import Lifetime
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Adapter, Parameters
from contune.contract.state import State
from contune.errors import ConfigError


@final
class PromptPerTask(Adapter):
    """Module t is the frozen model with the `length` tokens of task t in front of its input.

    Every task starts from its own small normal values and shares nothing with the others, so no later task changes what
    its module answers. The released code starts them uniform in +-1/sqrt(d), which at d = 768 has the same spread. An
    image's tokens have no position; the released code puts them behind the class token, which in a transformer gives the
    same features. Those of a text come before its first token, whose positions move up by `length`. Length 0 is the
    frozen model. Memory: length x d per task. Where the adapter learns in the first task only, later tasks add no prompt
    and go through the first.

    Compute: a full backward pass through an input that is `length` tokens longer.
    """

    name: ClassVar[str] = "prompt-per-task"
    supports_packing: ClassVar[bool] = False
    expands = True
    lifetime = Lifetime.PER_MODULE

    def __init__(
        self,
        *,
        length: Annotated[int, "tokens of each task's prompt; 0: the frozen model", "official code"] = 10,
    ) -> None:
        if length < 0:
            raise ConfigError(f"length is {length}; give 0 or more tokens, 0 for none")
        self.length = length
        self._seed = 0
        self._prompts = TaskSets()

    def attach(self, backbone: Backbone, seed: int) -> None:
        self._seed = seed

    def begin_task(self, context: Context) -> None:
        task = len(self._prompts)
        if task and not context.model.adapter_trainable:
            return
        backbone, name = context.model.backbone, f"prompt of task {task}"
        start = normal((self.length, backbone.parts.prompt_width), self._seed, name, backbone.device)
        self._prompts.append({"tokens": start} if self.length else {}, backbone.device, context.task.index)

    def end_task(self, context: Context) -> None:
        del context
        self._prompts.finish()

    def trained(self) -> Parameters:
        return self._prompts.trained()

    def lowest_layer(self, backbone: Backbone) -> int:
        return 0 if self.length else backbone.depth

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if not self.length:
            return backbone.features(batch.inputs, resume=batch.resume), None
        return backbone.features(batch.inputs, prompts=self._prompts[batch.route]["tokens"]), None

    def modules(self) -> int:
        return len(self._prompts)

    def routes(self, tasks: Tensor) -> Tensor:
        return self._prompts.routes(tasks)

    def module_state(self, module: int) -> State | None:
        return self._prompts.done(module)

    def state(self) -> State:
        return self._prompts.state()

    def load_state(self, state: State, context: Context) -> None:
        self._prompts.load_state(state, context.model.backbone.device)
