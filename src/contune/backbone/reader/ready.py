"""What inputs were made ready for is kept while they live, so that looking at all data before learning costs nothing."""

from collections.abc import Callable
from threading import Lock
from typing import final
from weakref import WeakKeyDictionary

from contune.backbone.reader.inputs import Prepared
from contune.stream.inputs import Indexed, Inputs

KEPT_POSITIONS = 8 * 2**20  # token positions: some 64 MB of numbers
Prepare = Callable[[Inputs], Prepared]


@final
class Ready:
    """Prepared inputs, kept as long as the inputs themselves and up to `most` token positions of all together.

    Only of rows of files or tables, which nobody can change; a list of Python's may be another one tomorrow.
    """

    def __init__(self, most: int = KEPT_POSITIONS) -> None:
        self.most = most
        self._kept: WeakKeyDictionary[Indexed, Prepared] = WeakKeyDictionary()
        self._lock = Lock()  # several threads may ask for answers

    def get(self, inputs: Inputs, prepare: Prepare) -> Prepared:
        """What `prepare` makes of the inputs, or made of them before."""
        if not isinstance(inputs, Indexed):
            return prepare(inputs)
        with self._lock:
            found = self._kept.get(inputs)
            if found is None:
                found = prepare(inputs)
                if self.positions() + int(found.lengths.sum()) <= self.most:
                    self._kept[inputs] = found
            return found

    def positions(self) -> int:
        """Token positions of all that is kept."""
        return sum(int(prepared.lengths.sum()) for prepared in self._kept.values())
