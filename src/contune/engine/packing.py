"""Whether texts may share rows with these parts, on this kind of stream."""

from contune.contract.parts import Adapter
from contune.errors import CombinationError, ConfigError
from contune.stream.task import Kind


def refuse_packing(kind: Kind, adapter: Adapter) -> None:
    """Raise where `train.packing` makes no sense; before any model is loaded."""
    if kind != "language":
        raise ConfigError(
            f"train.packing is on, but the stream is {kind}, where an example is one row of features; packing is for "
            "streams of kind language, leave it out"
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
