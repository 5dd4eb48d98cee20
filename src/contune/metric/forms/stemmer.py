"""Porter's stemmer of English words (Program 14(3), 1980), with the departures of the one that ROUGE is published with.

Those are NLTK's: a short list of irregular words, `y` becomes `i` only after a consonant that is not the whole stem,
`ies` and `ied` of four letters keep their e, `abli` is shortened as `bli`, and there are rules for `fulli` and `logi`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

VOWELS = frozenset("aeiou")
IRREGULAR = {
    **dict.fromkeys(("sky", "skies"), "sky"),
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "news": "news",
    **dict.fromkeys(("innings", "inning"), "inning"),
    **dict.fromkeys(("outings", "outing"), "outing"),
    **dict.fromkeys(("cannings", "canning"), "canning"),
    **{word: word for word in ("howe", "proceed", "exceed", "succeed")},
}
Rule = tuple[str, str]  # a suffix, and what stands for it

STEP_1A: tuple[Rule, ...] = (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", ""))
STEP_2: tuple[Rule, ...] = (
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
)
STEP_3: tuple[Rule, ...] = (
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
)
STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate"),
    *("iti", "ous", "ive", "ize"),
)


def consonants(word: str) -> list[bool]:
    """Which letters are consonants; a y is one at the start and after a vowel."""
    flags: list[bool] = []
    for letter in word:
        flags.append(letter not in VOWELS if letter != "y" else not flags or not flags[-1])
    return flags


def measure(word: str) -> int:
    """How often a consonant follows a vowel.

    >>> measure("tree"), measure("trouble"), measure("troubles")
    (0, 1, 2)
    """
    flags = consonants(word)
    return sum(second and not first for first, second in pairwise(flags))


def _short(word: str) -> bool:
    """Whether a word ends in consonant, vowel, consonant other than w, x, y, or is a vowel and a consonant alone."""
    flags = consonants(word)
    if len(word) == 2:
        return flags == [False, True]
    return flags[-3:] == [True, False, True] and word[-1] not in "wxy"


def _replaced(word: str, rules: Sequence[Rule], holds: Callable[[str], bool]) -> str:
    """The first rule whose suffix the word has; nothing changes where what is left of it does not qualify."""
    for suffix, other in rules:
        if word.endswith(suffix):
            left = word[: len(word) - len(suffix)]
            return left + other if holds(left) else word
    return word


def _without_ending(word: str) -> str:
    """Steps 1a and 1b: plurals, past tense and participles."""
    word = word[:-1] if word.endswith("ies") and len(word) == 4 else _replaced(word, STEP_1A, lambda _left: True)
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if measure(word[:-3]) else word
    endings = (left for end in ("ed", "ing") if word.endswith(end) and not all(consonants(left := word[: -len(end)])))
    left = next(endings, "")
    if not left:
        return word
    if left.endswith(("at", "bl", "iz")):
        return left + "e"
    if len(left) > 1 and left[-1] == left[-2] and consonants(left)[-1]:
        return left if left[-1] in "lsz" else left[:-1]
    return left + "e" if measure(left) == 1 and _short(left) else left


def _derived(word: str) -> str:
    """Step 2: endings of derived words."""
    if word.endswith("alli") and measure(word[:-4]):
        return _derived(word[:-2])
    if word.endswith("logi"):
        return word[:-1] if measure(word[:-3]) else word
    return _replaced(word, STEP_2, lambda left: measure(left) > 0)


def _bare(word: str) -> str:
    """Steps 4 and 5: the last ending, a silent e, a double l."""
    for end in sorted(STEP_4, key=len, reverse=True):
        if word.endswith(end):
            left = word[: -len(end)]
            word = left if measure(left) > 1 and (end != "ion" or left.endswith(("s", "t"))) else word
            break
    if word.endswith("e") and (measure(word[:-1]) > 1 or (measure(word[:-1]) == 1 and not _short(word[:-1]))):
        word = word[:-1]
    return word[:-1] if word.endswith("ll") and measure(word[:-1]) > 1 else word


def stem(word: str) -> str:
    """The stem of an English word in lower case.

    >>> [stem(word) for word in ("relational", "hopping", "flies", "happy", "generalizations", "sky")]
    ['relat', 'hop', 'fli', 'happi', 'gener', 'sky']
    """
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) < 3:
        return word
    word = _without_ending(word)
    if word.endswith("y") and len(word) > 2 and consonants(word)[-2]:
        word = word[:-1] + "i"
    return _bare(_replaced(_derived(word), STEP_3, lambda left: measure(left) > 0))
