"""Learning from chunks without tasks: which methods can, how they grow, and one chunk."""

from collections.abc import Sequence

from contune.adapter.wrapper import Around
from contune.contract.capability import Lifetime, Modules, find
from contune.contract.context import Context
from contune.contract.parts import Adapter, Part, Rule
from contune.contract.processes import Processes
from contune.contract.settings import TrainSettings
from contune.engine.steps.stepper import Stepper
from contune.errors import CombinationError, ConfigError
from contune.method.method import Method
from contune.metric.ledger import Ledger


def waiting(method: Method) -> list[str]:
    """Names of the parts that wait for a task to begin or end: they would never act where nobody says so."""
    named = [] if method.router is None else [method.router.name]
    adapter = method.adapter
    lasting = adapter.lifetime in Lifetime.NOTHING | Lifetime.LASTING | Lifetime.REDRAWN
    if not lasting or find(adapter, Modules) is not None or acts_at_the_end(adapter):
        named.append(adapter.name)
    for rule in method.rules:
        acts = (type(rule).begin_task, type(rule).end_task) != (Rule.begin_task, Rule.end_task)
        if acts and type(rule).after_chunk is Rule.after_chunk:
            named.append(rule.name)
    return named


def acts_at_the_end(adapter: Adapter) -> bool:
    """Whether an adapter, or one inside it, does something when a task ends."""
    if isinstance(adapter, Around) and type(adapter).end_task is Around.end_task:
        return acts_at_the_end(adapter.inner)
    return type(adapter).end_task is not Adapter.end_task


def refuse_waiting(method: Method, settings: TrainSettings) -> None:
    """Raise where a method cannot learn from a stream without tasks."""
    parts = waiting(method)
    if parts:
        raise CombinationError(
            f"{parts[0]!r} waits for a task to begin or end, and in chunks without tasks nobody says when; take a method "
            "that needs no boundaries, such as er, lora or nmc, or learn task by task"
        )
    if method.joint or method.adapt != "every-task":
        raise CombinationError("joint training and first-task adaptation need tasks; learn task by task")
    if settings.schedule != "constant" or settings.warmup:
        raise ConfigError(
            f"train.schedule is {settings.schedule} and train.warmup {settings.warmup}, but in chunks nobody knows how many "
            "steps there will be; set schedule: constant and warmup: 0"
        )


def grow(context: Context, parts: Sequence[Part], *, first: bool) -> None:
    """All parts meet new classes; with the first chunk the one long task begins."""
    for part in parts:
        if first:
            part.begin_task(context)
        else:
            part.meet(context)


def learn_chunk(
    context: Context, rules: Sequence[Rule], stepper: Stepper, processes: Processes, ledger: Ledger, steps: int
) -> None:
    """Steps on one chunk where something is trained by gradient, a pass for heads that are solved, and what rules keep."""
    if context.model.trained():
        with ledger.phase("train"):
            stepper.take(context, rules, processes, ledger, steps)
    with ledger.phase("fit"):
        context.model.head.fit(context)
    for rule in rules:
        rule.after_chunk(context)
