"""Entities in rows of tags, and F1 over them, as seqeval counts in its default mode (the law of conlleval)."""

from collections.abc import Collection, Iterable, Sequence

from contune.metric.answers.labels import f1

Entity = tuple[str, int, int]
STARTS, ENDS = "BS", "ES"


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix and type of a tag: B-PER is B of PER, O is O of nothing.

    >>> split_tag("B-PER"), split_tag("O")
    (('B', 'PER'), ('O', ''))
    """
    prefix, _, kind = tag.partition("-")
    return prefix, kind


def is_entity_tag(tag: str) -> bool:
    """Whether a tag is of one of the schemes of entities: O, or B, I, E, S, L or U with a type."""
    return tag == "O" or (tag[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") and len(tag) > 2)


def entities(tags: Sequence[str]) -> list[Entity]:
    """Type, first and last place of every entity of one row; L and U are other names of E and S.

    An entity starts at B, S or U, where the type changes, and after O, E, L, S or U; it goes on through I and E of its type.

    >>> entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [('PER', 0, 1), ('LOC', 3, 3), ('LOC', 4, 4)]
    """
    found: list[Entity] = []
    start, before = 0, ("O", "")
    for place, tag in enumerate([*tags, "O"]):
        prefix, kind = split_tag({"L": "E", "U": "S"}.get(tag[:1], tag[:1]) + tag[1:] if tag[1:2] == "-" else tag)
        now = (prefix, kind)
        if before[0] != "O" and (before[0] in ENDS or prefix in (*STARTS, "O") or before[1] != kind):
            found.append((before[1], start, place - 1))
        if prefix != "O" and (before[0] in ("O", *ENDS) or prefix in STARTS or before[1] != kind):
            start = place
        before = now
    return found


def entity_f1(
    right: Iterable[Sequence[str]], answered: Iterable[Sequence[str]], types: Collection[str]
) -> float | None:
    """F1 over the entities of these types in all rows: one counts where type, start and end are right.

    None where there is no entity and none was answered.

    >>> entity_f1([["B-PER", "O"]], [["B-PER", "B-PER"]], ["PER"])
    0.6666666666666666
    """
    hits = extra = missed = 0
    for wanted, found in zip(right, answered, strict=True):
        true = {one for one in entities(wanted) if one[0] in types}
        given = {one for one in entities(found) if one[0] in types}
        hits, extra, missed = hits + len(true & given), extra + len(given - true), missed + len(true - given)
    return f1(hits, extra, missed)
