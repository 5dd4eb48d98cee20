"""Figures of several labels at once: counts of right and wrong names, and what follows from them.

`right` and `answered` hold for each example the names that are right and those that were answered; names outside `classes`
are not asked for and do not count.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

Names = Sequence[Iterable[str]]


def label_counts(
    right: Names, answered: Names, classes: Sequence[str]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """By name: how often it was answered rightly, answered wrongly, and missed.

    >>> [dict(found) for found in label_counts([["a", "b"]], [["a", "c"]], ["a", "b", "c"])]
    [{'a': 1}, {'c': 1}, {'b': 1}]
    """
    asked = set(classes)
    hits, extra, missed = Counter[str](), Counter[str](), Counter[str]()
    for wanted, found in zip(right, answered, strict=True):
        true, given = set(wanted) & asked, set(found) & asked
        hits.update(true & given)
        extra.update(given - true)
        missed.update(true - given)
    return hits, extra, missed


def f1(hits: int, extra: int, missed: int) -> float | None:
    """2 hits / (2 hits + extra + missed); None where there was nothing to find and nothing was answered.

    >>> f1(1, 1, 0), f1(0, 0, 0)
    (0.6666666666666666, None)
    """
    total = 2 * hits + extra + missed
    return 2 * hits / total if total else None


def micro_f1(right: Names, answered: Names, classes: Sequence[str]) -> float | None:
    """F1 of all names together (sklearn's `average="micro"`)."""
    counts = label_counts(right, answered, classes)
    return f1(*(sum(found.values()) for found in counts))


def macro_f1(right: Names, answered: Names, classes: Sequence[str]) -> float | None:
    """Mean over names of their F1; a name that neither occurs nor is answered counts 0, as in sklearn.

    >>> macro_f1([["a"]], [["a"]], ["a", "b"])
    0.5
    """
    hits, extra, missed = label_counts(right, answered, classes)
    each = [f1(hits[name], extra[name], missed[name]) or 0.0 for name in classes]
    return sum(each) / len(each) if each else None


def exact_share(right: Names, answered: Names, classes: Sequence[str]) -> float | None:
    """Share of examples of which all names are right and none is missing."""
    asked = set(classes)
    same = [set(wanted) & asked == set(found) & asked for wanted, found in zip(right, answered, strict=True)]
    return sum(same) / len(same) if same else None
