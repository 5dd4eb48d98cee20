"""Whether parts fit together, by what one needs and another has; the one place where a refusal's sentence is made."""

from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache

from contune.contract.capability import ANY_TRAINED, Lifetime, Modules, Need, find, words_of
from contune.contract.parts import Adapter, Head, Part
from contune.errors import ContuneError
from contune.method.rooms import parts

MOST_NAMED = 3  # parts that a refusal names
HAS = {
    Lifetime.NOTHING: "trains nothing inside the model",
    Lifetime.LASTING: "trains tensors that live through all tasks",
    Lifetime.RESTARTED: "starts its tensors anew in every task",
    Lifetime.REDRAWN: "trains another part of its tensors in every task",
    Lifetime.PER_TASK: "trains new tensors in every task and leaves the old as they are",
    Lifetime.PER_MODULE: "trains a new module in every task and leaves the old as they are",
    Lifetime.BY_KIND: "trains a module for each kind of task and leaves the others as they are",
}


def met(need: Need, part: Part) -> bool:
    """Whether a part has what another needs.

    >>> from contune.adapter.none import NoAdapter
    >>> met(Lifetime.LASTING, NoAdapter()), met(Lifetime.LASTING | Lifetime.NOTHING, NoAdapter())
    (False, True)
    """
    if isinstance(need, Lifetime):
        return isinstance(part, Adapter) and bool(part.lifetime & need)
    return find(part, need) is not None


def refusal(asker: str, needs: Sequence[Need], part: Adapter | Head) -> str | None:
    """Why this adapter or head does not do for a part that needs these things, or None.

    >>> from contune.adapter.lora.per_task import LoraPerTask
    >>> from contune.contract.capability import THROUGH_TASKS
    >>> refusal("rule 'l2'", (THROUGH_TASKS,), LoraPerTask())  # doctest: +ELLIPSIS
    "rule 'l2' works on tensors that live through several tasks, but adapter 'lora-per-task' trains new tensors ..."
    """
    unmet = next((need for need in needs if not met(need, part)), None)
    if unmet is None:
        return None
    room = "adapter" if isinstance(part, Adapter) else "head"
    if isinstance(unmet, Lifetime) and isinstance(part, Adapter):
        has = " and ".join(words for lifetime, words in HAS.items() if lifetime in part.lifetime)
        problem = f"{asker} works on {wanted(unmet)}, but adapter {part.name!r} {has}"
    else:
        assert isinstance(unmet, type)
        article = "an adapter" if room == "adapter" else "a head"
        problem = f"{asker} needs {article} that {words_of(unmet)}, and {part.name!r} is none"
    names = alternatives(room, needs, part.name)
    return f"{problem}; set {room}: {' or '.join(names)}" if names else f"{problem}, nor is any other that is known"


def wanted(need: Lifetime) -> str:
    """What a part works on that needs tensors of one of these lifetimes.

    >>> wanted(Lifetime.NOTHING)
    'features that no adapter changes'
    """
    if not need & ANY_TRAINED:
        return "features that no adapter changes"
    if Lifetime.PER_MODULE in need:
        return "what an adapter trains"
    return "what old examples go through" if Lifetime.PER_TASK in need else "tensors that live through several tasks"


def alternatives(room: str, needs: Sequence[Need], name: str) -> list[str]:
    """Names of some parts of a room that have all of this: plain ones first, and names most like the one refused."""

    def place(other: str) -> tuple[bool, bool, float, str]:
        part = defaults(room)[other]
        mixed = isinstance(part, Adapter) and len(part.lifetime) > 1
        return find(part, Modules) is not None, mixed, -SequenceMatcher(None, name, other).ratio(), other

    fit = [other for other, part in defaults(room).items() if all(met(need, part) for need in needs)]
    return sorted(fit, key=place)[:MOST_NAMED]


@cache
def defaults(room: str) -> dict[str, Part]:
    """Every part of a room with its defaults, never attached to a model; those that have no defaults are left out."""
    found = {}
    for name, make in parts(room).items():
        try:
            found[name] = make()
        except (TypeError, ContuneError):
            continue
    return found
