"""Whether texts may share rows with these parts."""

from contune.contract.objective import Objective
from contune.contract.parts import Adapter, Trait
from contune.errors import CombinationError, ConfigError


def refuse_packing(objective: Objective, adapter: Adapter) -> None:
    """Raise where `train.packing` makes no sense; before any model is loaded."""
    if Trait.WRITTEN not in objective.traits:
        raise ConfigError(
            f"train.packing is on, but with objective: {objective.name} nothing is written; packing is for objective: "
            "write, leave it out"
        )
    against = next((one.name for one in with_inner(adapter) if not one.supports_packing), None)
    if against is not None:
        raise CombinationError(
            f"adapter {against!r} adds tokens to a text or does something else to every text, and with train.packing "
            "several texts share a row; set train.packing: false, or take an adapter of weights, such as lora"
        )


def with_inner(adapter: Adapter) -> list[Adapter]:
    """An adapter and those inside it."""
    inner = [value for value in vars(adapter).values() if isinstance(value, Adapter)]
    return [adapter, *(each for one in inner for each in with_inner(one))]
