"""What a method is: one adapter, one head, some rules, perhaps a router, and how training is best run for it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

from contune.contract.capability import ANY_TRAINED, Modules, TaskModules, find
from contune.contract.objective import Objective
from contune.contract.parts import Adapter, Head, Part, Router, Rule, Trait
from contune.errors import CombinationError
from contune.method.needs import refusal


@final
@dataclass(frozen=True, eq=False)
class Method:
    """One recipe's answer.

    `rules` are kept in the order of their phases, however they are given.

    `adapt`: the adapter learns in every task, or in the first one only and rests from then on. `joint`: all tasks at once,
    which is no continual learning but its upper bound. `train`: the values this method recommends for the gradient
    loop; what the user sets wins.
    """

    adapter: Adapter
    head: Head
    rules: tuple[Rule, ...] = ()
    router: Router | None = None
    adapt: Literal["every-task", "first-task"] = "every-task"
    joint: bool = False
    train: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(sorted(self.rules, key=lambda rule: rule.phase)))
        self._check_modules()
        trains = bool(self.adapter.lifetime & ANY_TRAINED)
        if self.head.closed_form and trains and self.adapt == "every-task" and not self.joint:
            raise CombinationError(
                f"head {self.head.name!r} keeps sums of features, and adapter {self.adapter.name!r} would change the "
                "features of finished tasks under it; set adapt: first-task, or take a head trained by gradient"
            )
        if self.head.closed_form and self.rules:
            names = ", ".join(repr(rule.name) for rule in self.rules)
            raise CombinationError(
                f"head {self.head.name!r} is solved in closed form and forgets nothing, so rule {names} would have "
                "nothing to protect; leave the rules out, or take a head trained by gradient"
            )
        for reason in self._refusals():
            if reason:
                raise CombinationError(reason)

    def _refusals(self) -> Iterator[str | None]:
        """Every reason why a part does not do for another, each asked for only where none came before."""
        yield refusal(f"head {self.head.name!r}", self.head.needs, self.adapter)
        for rule in self.rules:
            asker = f"rule {rule.name!r}"
            yield refusal(asker, rule.needs, self.adapter)
            yield refusal(asker, rule.needs_of_head, self.head)
            yield rule.refuses(self.adapter, self.head)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts but the head, whose place the objective decides."""
        return (self.adapter, *self.rules, *([] if self.router is None else [self.router]))

    def diagnostics(self) -> dict[str, dict[str, float]]:
        """What the parts found out in the task just learned, by their names."""
        found = {part.name: dict(part.diagnostics()) for part in (*self.parts, self.head)}
        return {name: values for name, values in found.items() if values}

    def for_objective(self, objective: Objective) -> "Method":
        """This method with the head that gives the objective's scores; refused where a part needs other ones."""
        head = objective.head(self.head)
        for part in (*self.parts, head):
            lacking = [trait.value for trait in Trait if trait in part.needs_traits - objective.traits]
            if lacking:
                raise CombinationError(
                    f"{part.name!r} needs {lacking[0]}, which objective: {objective.name} does not have; take another "
                    "method, or another objective"
                )
        several = find(self.adapter, Modules) is not None
        if Trait.EXAMPLE_ROWS not in objective.traits and several and self.router is None:
            raise CombinationError(
                f"adapter {self.adapter.name!r} has several modules, and with objective: {objective.name} answers come "
                "through one of them; add a router that chooses it"
            )
        return self if head is self.head else replace(self, head=head)

    def _check_modules(self) -> None:
        adapter, head = self.adapter, self.head
        if self.router is not None and (reason := refusal(f"router {self.router.name!r}", self.router.needs, adapter)):
            raise CombinationError(reason)
        if find(adapter, Modules) is None:
            return
        if self.joint:
            raise CombinationError(
                f"adapter {adapter.name!r} has several modules, which makes no sense where all tasks are learned at once; "
                "take adapter: lora for joint training"
            )
        wanted = ("fixed", "growing") if find(adapter, TaskModules) is None else ("growing",)
        if self.router is None and head.takes_modules not in wanted:
            raise CombinationError(
                f"adapter {adapter.name!r} answers with several modules and head {head.name!r} makes nothing of their "
                "features side by side; add a router, or take a head that does, such as subspace-means"
            )
