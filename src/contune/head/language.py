"""The model's own language head: scores of the next token; answers are written, not chosen."""

from collections.abc import Callable
from typing import ClassVar, final

from torch import Tensor

from contune.backbone.reader.language import PreparedConversations
from contune.contract.context import Context
from contune.contract.parts import Head, Trait
from contune.contract.state import State

SPARE_TOKENS = 8  # beyond the longest answer that was learned: room to be wrong in


@final
class Language(Head):
    """Scores (T, V) of each of the T tokens to predict, from the states before them.

    It is the model's and rests with the model: adapters that train all weights train it too, whether it is tied to the
    embeddings or not, and others leave it. Takes the place of a linear head where answers are written. Remembers how long
    the longest answer of the training data was, in tokens: what is written gets that much room and a little more, and no
    test answer is looked at for it.
    """

    name: ClassVar[str] = "language"
    needs_traits: ClassVar[frozenset[Trait]] = frozenset({Trait.WRITTEN})
    selectable: ClassVar[bool] = False

    def __init__(self) -> None:
        self.max_new_tokens: int = 0
        self._scores: Callable[[Tensor], Tensor] | None = None

    def begin_task(self, context: Context) -> None:
        self._scores = context.model.backbone.language.scores
        prepared = context.task.data.prepared
        assert isinstance(prepared, PreparedConversations)
        self.max_new_tokens = max(self.max_new_tokens, prepared.longest_answer + SPARE_TOKENS)

    def logits(self, features: Tensor) -> Tensor:
        assert self._scores is not None
        return self._scores(features)

    def state(self) -> State:
        return State({}, {"max_new_tokens": self.max_new_tokens})

    def load_state(self, state: State, context: Context) -> None:
        self._scores, self.max_new_tokens = context.model.backbone.language.scores, int(state.values["max_new_tokens"])
