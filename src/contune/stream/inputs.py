"""Inputs that lie in files and are decoded when asked, so that memory does not grow with the data.

```text
source      values as they lie in files (a spool, a folder of files, a data set)      one per row of a split
Decoded     the same, decoded when asked; what was decoded last is kept as far as it fits
Indexed     rows of several such sources in any order: what examples hold
```
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Any, cast, final, overload

import numpy as np
from numpy.typing import NDArray

from contune.stream.modality import Modality

Rows = NDArray[np.int64]
Inputs = Sequence[Any]  # of texts, of images, of conversations or what else there is a modality for
KEPT_MB = 128
_numbers = count()


@final
class DecodedCache:
    """Decoded inputs under a limit of `megabytes`, the one used longest ago dropped first; threads may share it."""

    def __init__(self, megabytes: int = KEPT_MB) -> None:
        self.limit = megabytes * 2**20
        self.nbytes = 0
        self._kept: OrderedDict[tuple[int, int], tuple[Any, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: tuple[int, int]) -> Any:
        """What was kept under the key, or None."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def keep(self, key: tuple[int, int], item: Any, size: int) -> None:
        """Keep an item of `size` bytes where it is not larger than the limit."""
        with self._lock:
            if size > self.limit or key in self._kept:
                return
            self._kept[key] = (item, size)
            self.nbytes += size
            while self.nbytes > self.limit:
                _, (_, dropped) = self._kept.popitem(last=False)
                self.nbytes -= dropped


@final
@dataclass(frozen=True, eq=False)
class Decoded(Sequence[Any]):
    """The inputs that the values of a source are; an error names the row, which was good when the stream was read."""

    source: Sequence[Any]
    modality: Modality
    cache: DecodedCache | None = None
    _number: int = field(default_factory=_numbers.__next__)  # whose inputs the cache holds

    def __len__(self) -> int:
        return len(self.source)

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> "Indexed": ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return indexed(self)[at]
        key = (self._number, range(len(self.source))[at])
        kept = None if self.cache is None else self.cache.get(key)
        if kept is not None:
            return kept
        item = self.modality.decode(self.source[key[1]])
        if self.cache is not None:
            self.cache.keep(key, item, self.modality.nbytes(item))
        return item


@final
@dataclass(frozen=True, eq=False)
class Indexed(Sequence[Any]):
    """Input i is `sources[owners[i]][rows[i]]`, found when asked; taking and joining copies numbers alone."""

    sources: tuple[Sequence[Any], ...]
    owners: NDArray[np.int32]
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> "Indexed": ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return self.take(np.arange(len(self))[at])
        return self.sources[int(self.owners[at])][int(self.rows[at])]

    def __iter__(self) -> Iterator[Any]:
        for owner, row in zip(self.owners, self.rows, strict=True):
            yield self.sources[int(owner)][int(row)]

    def take(self, rows: Rows | Sequence[int]) -> "Indexed":
        """The inputs at `rows`, in that order; sources that none is from are let go."""
        chosen = np.asarray(rows, dtype=np.int64)
        used, owners = np.unique(self.owners[chosen], return_inverse=True)
        kept = tuple(self.sources[int(number)] for number in used)
        return Indexed(kept, owners.astype(np.int32), self.rows[chosen])

    def held(self) -> Iterator[tuple[int, Any]]:
        """Place and value of those that are held in memory, which nobody has checked by decoding them."""
        in_memory = [not isinstance(source, Decoded) for source in self.sources]
        for at in np.flatnonzero(np.asarray(in_memory, dtype=np.bool_)[self.owners]) if any(in_memory) else ():
            yield int(at), self[int(at)]


def indexed(inputs: Inputs) -> Indexed:
    """All inputs as rows of themselves."""
    if isinstance(inputs, Indexed):
        return inputs
    return Indexed((inputs,), np.zeros(len(inputs), dtype=np.int32), np.arange(len(inputs), dtype=np.int64))


def taken(inputs: Inputs, rows: Rows | Sequence[int]) -> Inputs:
    """The inputs at `rows`, in that order: those in memory as a list, of others the row numbers alone.

    >>> taken(["a", "b", "c"], [2, 0])
    ['c', 'a']
    """
    if isinstance(inputs, Indexed | Decoded):
        return indexed(cast(Indexed, inputs)).take(rows)
    return [inputs[int(row)] for row in rows]


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Several inputs one after the other.

    >>> joined([["a"], ["b"]])
    ['a', 'b']
    """
    if not any(isinstance(part, Indexed | Decoded) for part in parts):
        return [item for part in parts for item in part]
    whole = [indexed(part) for part in parts]
    places: dict[int, int] = {}
    sources: list[Sequence[Any]] = []
    owners = []
    for part in whole:
        for source in part.sources:
            if id(source) not in places:
                places[id(source)] = len(sources)
                sources.append(source)
        numbers = np.array([places[id(source)] for source in part.sources], dtype=np.int32)
        owners.append(numbers[part.owners] if len(part) else np.zeros(0, dtype=np.int32))
    return Indexed(tuple(sources), np.concatenate(owners), np.concatenate([part.rows for part in whole]))


def held(inputs: Inputs) -> Iterator[tuple[int, Any]]:
    """Place and value of the inputs in memory; the others were checked when their stream was read."""
    return indexed(inputs).held()
