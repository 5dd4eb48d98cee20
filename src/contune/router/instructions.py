"""The module whose instructions are most like an example's own, by the cosine of TF-IDF (LCIA, arXiv 2410.10868)."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor

from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.contract.parts import Router, Trait
from contune.contract.state import State
from contune.errors import ConfigError
from contune.router.keys import own_module
from contune.stream.conversation import Conversation
from contune.stream.modality import find_modality

Line = Literal["first", "last", "all"]
Vector = Mapping[str, float]
DIGITS = 12  # of a mean cosine: so equal texts have 1, and equal means are equal


def instruction_of(asked: object, line: Line) -> str:
    """The first, last or every line of what is asked, without blanks around it; nothing where nothing is asked.

    >>> instruction_of("Name the colour.\\nThe sea is", "first")
    'Name the colour.'
    """
    text = asked.prompt if isinstance(asked, Conversation) else str(asked)
    lines = [each.strip() for each in text.splitlines() if each.strip()]
    if line == "all" or not lines:
        return "\n".join(lines)
    return lines[0] if line == "first" else lines[-1]


def words_of(text: str) -> list[str]:
    """Words of two letters and more, in lower case, without English stop words; all words where none would be left.

    A text without a word counts as one empty word, so that it is like other such texts and like nothing else.

    >>> words_of("What is the colour?"), words_of("What is it?"), words_of("")
    (['colour'], ['what', 'is', 'it'], [''])
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    every = re.findall(r"\w+", text.lower())
    return [word for word in every if len(word) > 1 and word not in ENGLISH_STOP_WORDS] or every or [""]


def idf(texts: Sequence[str]) -> dict[str, float]:
    """ln((1 + n) / (1 + texts with the word)) + 1 for every word of n texts, as scikit-learn smooths it.

    >>> idf(["red sea", "red"])["red"]
    1.0
    """
    holding = Counter(word for text in texts for word in set(words_of(text)))
    return {word: math.log((1 + len(texts)) / (1 + count)) + 1 for word, count in sorted(holding.items())}


def unit_vector(text: str, rarity: Vector, texts: int) -> dict[str, float]:
    """Counts of the text's words times their rarity, scaled to length 1; a new word is as rare as one of no text can be.

    >>> unit_vector("sea sea", {}, 5)
    {'sea': 1.0}
    """
    unknown = math.log(1 + texts) + 1
    weights = {word: count * rarity.get(word, unknown) for word, count in Counter(words_of(text)).items()}
    length = math.sqrt(sum(weight * weight for weight in weights.values()))
    return {word: weight / length for word, weight in weights.items()}


def mean_vector(vectors: Sequence[Vector]) -> dict[str, float]:
    """The mean of vectors that name what is not zero."""
    total: dict[str, float] = {}
    for vector in vectors:
        for word, weight in vector.items():
            total[word] = total.get(word, 0.0) + weight / len(vectors)
    return total


def mean_cosines(groups: Sequence[Sequence[str]], documents: Sequence[Sequence[str]]) -> list[list[float]]:
    """For each group of texts the mean cosine, over all pairs, to the texts of each book.

    Rarities are those of all texts in the books. The mean of cosines of unit vectors is the product of their means.

    >>> mean_cosines([["red sea"]], [["red sea"], ["red sea", "tall hill"], ["old tree"]])[0]
    [1.0, 0.5, 0.0]
    """
    stored = [text for book in documents for text in book]
    rarity = idf(stored)

    def mean_of(texts: Iterable[str]) -> dict[str, float]:
        return mean_vector([unit_vector(text, rarity, len(stored)) for text in texts])

    shelves = [mean_of(book) for book in documents]
    found = []
    for group in groups:
        own = mean_of(group)
        found.append([sum(weight * shelf.get(word, 0.0) for word, weight in own.items()) for shelf in shelves])
    return [[round(value, DIGITS) for value in row] for row in found]


def best_match(cosines: Sequence[float], threshold: float) -> int | None:
    """The place of the largest value, the last of equal ones, or None where it is below the threshold.

    >>> best_match([0.4, 0.9, 0.9], 0.5), best_match([0.4], 0.5)
    (2, None)
    """
    best = max(range(len(cosines)), key=lambda at: (cosines[at], at), default=None)
    return best if best is not None and cosines[best] >= threshold else None


def most_common(texts: Sequence[str], keep: int) -> list[str]:
    """The `keep` different texts that come most often; equally frequent ones in the order in which they come.

    >>> most_common(["a", "b", "c", "b"], 2)
    ['b', 'a']
    """
    return [text for text, _ in Counter(texts).most_common(keep)]


@final
class Instructions(Router):
    """Keeps each module's instructions as text; the module whose instructions are most like the example's answers it.

    LCIA (arXiv 2410.10868). The instruction of an example is a `line` of its prompt: the first, where the instruction
    column, the domain's instruction and a system turn stand, or the last, where the released code looks. Likeness is
    the mean cosine of TF-IDF over all pairs, as released: an exact copy of a module's instructions has 1 only where
    they are a single text. An example whose best mean is below `threshold` is answered by the last module, as released;
    equal ones by the later.

    An adapter such as `lora-experts` asks `matching_module` whether a task may go on with an earlier module: the same
    mean over all pairs of the task's instructions and the module's. Documents have no instruction.

    Memory: the texts.
    Compute: counting words.
    Differs:
    - Rarities of words are those of all stored texts and not of each pair alone; a text of stop words alone keeps them.
    - Each example chooses for itself, where the released code looks at all test data of a task.
    - One threshold; the released ones are 0.9 for one fixed instruction per task and 0.3 for diverse ones.
    """

    name: ClassVar[str] = "instructions"

    def __init__(
        self,
        *,
        threshold: Annotated[float, "least cosine to go on with a module, 0 to 1", "released, diverse"] = 0.3,
        line: Annotated[Line, "part of a prompt that is its instruction: first or last line, or all"] = "first",
        keep: Annotated[int, "most frequent instructions kept of every task, from 1"] = 100,
        strict: Annotated[bool, "refuse streams of classes; false: there the last module answers all"] = True,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold is {threshold}; give a cosine from 0 to 1")
        if keep < 1:
            raise ConfigError(f"keep is {keep}; give at least 1 instruction per task")
        self.threshold, self.keep, self.strict = threshold, keep, strict
        needs = {Trait.WRITTEN} if strict else set[Trait]()
        self.needs_traits = frozenset(needs)  # type: ignore[misc]  # lcia lets its router be idle where answers are classes
        self.line: Line = line
        self._books: dict[int, list[str]] = {}

    def instructions(self, dataset: Dataset) -> list[str]:
        """The instruction of every example."""
        if not find_modality(dataset.examples.modality).conversations:
            return [""] * len(dataset)
        return [instruction_of(asked, self.line) for asked in dataset.examples.inputs]

    def matching_module(self, context: Context) -> int | None:
        """The module that learned instructions like those of the task that begins, or None where it should be a new one."""
        modules = sorted(self._books)
        own = most_common(self.instructions(context.task.data), self.keep)
        (cosines,) = mean_cosines([own], [self._books[module] for module in modules])
        best = best_match(cosines, self.threshold)
        return None if best is None else modules[best]

    def begin_task(self, context: Context) -> None:
        book = self._books.setdefault(own_module(context), [])
        found = most_common(self.instructions(context.task.data), self.keep)
        book += [text for text in found if text not in book]

    def route(self, context: Context, dataset: Dataset) -> Tensor:
        del context
        modules, asked = sorted(self._books), self.instructions(dataset)
        different = sorted(set(asked))
        cosines = mean_cosines([[text] for text in different], [self._books[module] for module in modules])
        best = {text: best_match(row, self.threshold) for text, row in zip(different, cosines, strict=True)}
        places = [len(modules) - 1 if (place := best[text]) is None else place for text in asked]
        return torch.tensor(modules, dtype=torch.int64)[torch.tensor(places, dtype=torch.int64)]

    def state(self) -> State:
        return State({}, {"books": [[module, list(book)] for module, book in sorted(self._books.items())]})

    def load_state(self, state: State, context: Context) -> None:
        del context
        self._books = {int(module): [str(text) for text in book] for module, book in state.values["books"]}
