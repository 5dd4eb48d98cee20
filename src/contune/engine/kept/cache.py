"""The store of frozen results: features and lower hidden states, computed once per example.

Everything here is a pure function of examples and frozen weights. The rows of one label are computed together, in a
fixed order and in fixed batches, and filed together: so a result gives the same bits whether it was kept, dropped or
recomputed after a kill, and another order of the classes finds again what an earlier one computed.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from contune.contract.data import Dataset, Rows
from contune.contract.passes import BLOCK_ROWS
from contune.contract.processes import Processes
from contune.contract.settings import CacheSettings
from contune.engine.kept.folder import CacheFolder, Unfit
from contune.errors import NumericError
from contune.metric.ledger import Ledger

SUM_ROWS = 65_536  # rows that go into one message between processes

Compute = Callable[[Rows], Tensor]
Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Note = Callable[[str], None]


def no_watch(_title: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A progress watcher that shows nothing."""
    return nullcontext(lambda _count: None)


def warn(sentence: str) -> None:
    """Say something that the user should know, where nobody watches: as a Python warning."""
    warnings.warn(sentence, stacklevel=3)


@final
@dataclass(frozen=True, eq=False)
class Ragged:
    """One matrix (length, d) per example, laid out flat: example i is `flat[offsets[i]:offsets[i + 1]]`."""

    flat: Tensor
    offsets: Rows

    def padded(self, rows: Rows, length: int) -> Tensor:
        """The matrices of `rows`, zero-padded to (rows, length, d)."""
        out = self.flat.new_zeros(len(rows), length, self.flat.shape[1])
        for place, row in enumerate(rows.tolist()):
            start, stop = int(self.offsets[row]), int(self.offsets[row + 1])
            out[place, : stop - start] = self.flat[start:stop]
        return out


def fixed_batches(lengths: Rows, size: int) -> Iterator[Rows]:
    """All rows once, longest first and in order within a length, so that a batch holds little padding."""
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def blocks_of(batches: Iterable[Rows], count: int) -> Iterator[list[Rows]]:
    """Consecutive batches together: as many as stay within `count` rows, and at least one.

    >>> [len(block) for block in blocks_of([np.arange(3)] * 5, 6)]
    [2, 2, 1]
    """
    block: list[Rows] = []
    for rows in batches:
        if block and sum(len(each) for each in block) + len(rows) > count:
            yield block
            block = []
        block.append(rows)
    if block:
        yield block


def flat_rows(rows: Rows, offsets: Rows | None) -> Tensor:
    """Where the values of `rows` lie in a result: the rows themselves, or with offsets every position of theirs.

    >>> flat_rows(np.array([2, 0]), np.array([0, 1, 1, 3])).tolist()
    [1, 2, 0]
    """
    if offsets is None:
        return torch.from_numpy(rows)
    spans = [np.arange(offsets[row], offsets[row + 1]) for row in rows.tolist()]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *spans]))


@final
class MemoryCache:
    """Results kept in memory under a limit, the one used longest ago dropped first; several runs may share one.

    A result is found again as a whole by its key, and piece by piece: the rows of one label by their own key.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._groups: dict[str, tuple[str, Tensor]] = {}

    def whole(self, key: str) -> Tensor | None:
        """The result that was kept under `key`."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def group(self, key: str) -> Tensor | None:
        """The rows that were kept as a piece of some result, in the order they were kept in."""
        where, locations = self._groups.get(key, ("", None))
        result = self._kept.get(where)
        return None if result is None or locations is None else result[locations]

    def keep(self, key: str, result: Tensor, groups: dict[str, Tensor], limit: int) -> None:
        """Keep a result where it is not larger than `limit` bytes; `groups` says where the rows of each piece lie."""
        if result.nbytes > limit:
            return
        self._kept[key] = result
        self._groups |= {group: (key, locations) for group, locations in groups.items()}
        while self.nbytes() > limit:
            dropped, _ = self._kept.popitem(last=False)
            self._groups = {group: found for group, found in self._groups.items() if found[0] != dropped}

    def nbytes(self) -> int:
        """Bytes of all results that are kept."""
        return sum(result.nbytes for result in self._kept.values())


@final
class FeatureCache:
    """Keeps frozen results: on a shelf in memory, and where a folder is named also there, for several runs to share.

    A result larger than the limit is never kept in memory. `memory_cache` may be one that an earlier run has filled.
    What is computed must be finite; a file that is damaged is computed again, and `note` is told.
    """

    def __init__(
        self,
        settings: CacheSettings,
        ledger: Ledger,
        processes: Processes,
        watch: Watch = no_watch,
        memory_cache: MemoryCache | None = None,
        note: Note = warn,
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.processes = processes
        self.watch = watch
        self.memory_cache = memory_cache or MemoryCache()
        self.note = note
        self._folder = None if settings.folder is None else CacheFolder(Path(settings.folder))
        self._mapped: dict[str, Tensor] = {}  # files of the folder, of which memory holds what was read last

    def features(self, dataset: Dataset, name: str | None, width: int, compute: Compute) -> Tensor:
        """Features (n, width) of the whole data set; kept under `name`, or computed afresh where that is None."""
        if name is None:
            result = torch.zeros(len(dataset), width)
            self._compute(dataset.prepared.lengths, result, [np.arange(len(dataset))], compute, None, "features")
            return result
        return self._get(dataset, name, (len(dataset), width), compute, None, keep=self.settings.features)

    def prepare(self, dataset: Dataset, name: str | None, width: int, compute: Compute) -> None:
        """Have at hand what `rows` reads: in memory, or where it does not fit there in the folder."""
        if not self._in_folder_alone(name, (len(dataset), width)):
            self.features(dataset, name, width, compute)
        else:
            self._map(dataset, str(name), width, compute)

    def rows(self, dataset: Dataset, name: str | None, width: int, compute: Compute, rows: Rows) -> Tensor:
        """Features (rows, width) of some examples. What lies in the folder alone is read row by row, whatever its size."""
        if not self._in_folder_alone(name, (len(dataset), width)):
            return self.features(dataset, name, width, compute)[torch.from_numpy(rows)]
        groups, owner, place = dataset.locations
        found = torch.zeros(len(rows), width)
        for number in np.unique(owner[rows]).tolist():
            key, at = f"{name}-{groups[number]}", np.flatnonzero(owner[rows] == number)
            if key not in self._mapped:
                self._map(dataset, str(name), width, compute)
            found[torch.from_numpy(at)] = self._mapped[key][torch.from_numpy(place[rows[at]])]
        return found

    def feature_blocks(
        self, dataset: Dataset, name: str | None, width: int, compute: Compute, count: int = BLOCK_ROWS
    ) -> Iterator[tuple[Rows, Tensor]]:
        """What `features` gives, to the bit, in blocks of about `count` rows, with their places in ascending order.

        Read from memory where all fits there; in a folder kept label by label; else computed block by block and dropped.
        Which rows make a block depends on the examples alone, not on what is kept. Every process must take all blocks.
        """
        groups = [np.arange(len(dataset))] if name is None else list(dataset.groups.values())
        batches, shape = self._batches(dataset.prepared.lengths, groups), (len(dataset), width)
        computed = name is None or not self.keeps_features(shape)
        stream: Iterator[Tensor | None]
        if name is None or computed:
            stream = self._run(batches, compute, (name or "features").split("-")[0])
        elif self._fits_memory(shape):
            whole = self._get(dataset, name, shape, compute, None, keep=True)
            stream = (whole[torch.from_numpy(rows)] for rows in batches)
        else:
            stream = self._from_folder(dataset, name, width, compute)
        for block in blocks_of(batches, count):
            pairs = zip(block, stream, strict=False)  # the stream goes on with the next block
            values = torch.cat([torch.zeros(len(rows), width) if found is None else found for rows, found in pairs])
            if computed:
                self.processes.sum_([values])
                require_finite(values)
            rows = np.concatenate(block)
            order = np.argsort(rows)
            yield rows[order], values[torch.from_numpy(order)]
        next(stream, None)  # so that its progress ends

    def hidden(self, dataset: Dataset, name: str, width: int, compute: Compute) -> Ragged | None:
        """Hidden states of the whole data set, or None where they do not fit under the limit."""
        lengths = dataset.prepared.lengths
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        shape = (int(offsets[-1]), width)
        if not self.keeps_hidden([dataset], width):
            return None
        return Ragged(self._get(dataset, name, shape, compute, offsets, keep=True), offsets)

    def keeps_features(self, shape: tuple[int, int]) -> bool:
        """Whether features of this shape would be kept, so that asking for them batch by batch is cheap."""
        return self.settings.features and self._fits(shape)

    def keeps_hidden(self, datasets: Sequence[Dataset], width: int) -> bool:
        """Whether the hidden states of all these data sets would be in memory at the same time.

        Every step reads them, so that reading them from a folder each time would cost more than the layers they spare.
        """
        length = sum(int(dataset.prepared.lengths.sum()) for dataset in datasets)
        return self.settings.hidden and length * width * 4 <= self._limit

    @property
    def _limit(self) -> int:
        return self.settings.memory_mb * 2**20

    def _in_folder_alone(self, name: str | None, shape: tuple[int, int]) -> bool:
        return name is not None and self.keeps_features(shape) and not self._fits_memory(shape)

    def _fits(self, shape: tuple[int, int]) -> bool:
        return self.settings.folder is not None or self._fits_memory(shape)

    def _fits_memory(self, shape: tuple[int, int]) -> bool:
        return shape[0] * shape[1] * 4 <= self._limit

    def _get(
        self,
        dataset: Dataset,
        name: str,
        shape: tuple[int, int],
        compute: Compute,
        offsets: Rows | None,
        *,
        keep: bool,
    ) -> Tensor:
        key = f"{name}-{dataset.key}"
        found = self.memory_cache.whole(key) if keep else None
        if found is not None:
            return found
        result, locations = (
            torch.zeros(shape),
            {group: flat_rows(rows, offsets) for group, rows in dataset.groups.items()},
        )
        wanted = [(f"{name}-{group}", (len(at), shape[1])) for group, at in locations.items()]
        known = self._known(wanted) if keep else [None] * len(locations)
        missing = [group for group, values in zip(locations, known, strict=True) if values is None]
        groups = [dataset.groups[group] for group in missing]
        if groups:
            self._compute(dataset.prepared.lengths, result, groups, compute, offsets, name.split("-")[0])
        for where, values in zip(locations.values(), known, strict=True):
            if values is not None:
                result[where] = values
        if keep:
            self.memory_cache.keep(
                key, result, {f"{name}-{group}": place for group, place in locations.items()}, self._limit
            )
            for group in missing:
                if self._folder is not None:
                    self._folder.write(f"{name}-{group}", result[locations[group]])
        return result

    def _from_folder(self, dataset: Dataset, name: str, width: int, compute: Compute) -> Iterator[Tensor]:
        """Features batch by batch; those of one label are in memory at a time."""
        lengths = dataset.prepared.lengths
        assert self._folder is not None
        found = self._known([(f"{name}-{group}", (len(rows), width)) for group, rows in dataset.groups.items()])
        for values, (group, rows) in zip(found, dataset.groups.items(), strict=True):
            if values is None:
                values = torch.zeros(len(rows), width)
                self._compute_piece(lengths, values, rows, compute, name.split("-")[0])
                self._folder.write(f"{name}-{group}", values)
            for chosen in fixed_batches(lengths[rows], self.settings.batch_size):
                yield values[torch.from_numpy(chosen)]

    def _map(self, dataset: Dataset, name: str, width: int, compute: Compute) -> None:
        """Have the files of all labels in the folder and at hand."""
        if any(f"{name}-{group}" not in self._mapped for group in dataset.groups):
            for _ in self._from_folder(dataset, name, width, compute):
                pass
            assert self._folder is not None
            for group, rows in dataset.groups.items():
                values = self._folder.read(f"{name}-{group}", (len(rows), width))
                if values is None:
                    raise Unfit(f"{self._folder.path(f'{name}-{group}')} was removed while it was in use; run again")
                self._mapped[f"{name}-{group}"] = values

    def _compute_piece(self, lengths: Rows, values: Tensor, rows: Rows, compute: Compute, title: str) -> None:
        whole = [np.arange(len(rows))]
        self._compute(lengths[rows], values, whole, lambda chosen: compute(rows[chosen]), None, title)

    def _known(self, wanted: Sequence[tuple[str, tuple[int, int]]]) -> list[Tensor | None]:
        """The kept rows of each key, or None; the same ones on every process, though another run may write meanwhile."""
        found, unfit = [], []
        for key, shape in wanted:
            try:
                found.append(self._find(key, shape))
            except Unfit as why:
                found.append(None)
                unfit.append(str(why))
        if unfit:
            self.note(
                f"{len(unfit)} of {len(wanted)} kept results in {self.settings.folder} cannot be used and are computed "
                f"again ({unfit[0]})"
            )
        everywhere = torch.tensor([0.0 if values is None else 1.0 for values in found])
        self.processes.sum_([everywhere])
        return [
            values if count == self.processes.count else None
            for values, count in zip(found, everywhere.tolist(), strict=True)
        ]

    def _find(self, key: str, shape: tuple[int, int]) -> Tensor | None:
        kept = self.memory_cache.group(key)
        if kept is not None or self._folder is None:
            return kept
        return self._folder.read(key, shape)

    def _batches(self, lengths: Rows, groups: Sequence[Rows]) -> list[Rows]:
        size = self.settings.batch_size
        return [rows[chosen] for rows in groups for chosen in fixed_batches(lengths[rows], size)]

    def _compute(
        self,
        lengths: Rows,
        result: Tensor,
        groups: Sequence[Rows],
        compute: Compute,
        offsets: Rows | None,
        title: str,
    ) -> None:
        batches = self._batches(lengths, groups)
        for rows, values in zip(batches, self._run(batches, compute, title), strict=True):
            if values is not None:
                place(result, values, rows, offsets)
        for start in range(0, len(result), SUM_ROWS):  # a copy of all of it would take as much memory again
            self.processes.sum_([result[start : start + SUM_ROWS]])
            require_finite(result[start : start + SUM_ROWS])

    def _run(self, batches: Sequence[Rows], compute: Compute, title: str) -> Iterator[Tensor | None]:
        """What comes of each batch, or None where it is the share of another process."""
        with self.watch(title, sum(len(rows) for rows in batches)) as advance:
            for number, rows in enumerate(batches):
                values = None
                if number % self.processes.count == self.processes.rank:
                    with torch.no_grad():  # not around the loop: who takes the batches may need gradients
                        values = compute(rows).to("cpu", torch.float32)
                    self.ledger.examples_forward += len(rows)
                yield values
                advance(len(rows))


def require_finite(values: Tensor) -> None:
    """Refuse results that hold NaN or infinity: closed-form heads and routers would answer from them without a word."""
    good = values.isfinite().all(dim=1)
    if not good.all():
        raise NumericError(
            f"{int((~good).sum()):,} of {len(values):,} features of the model are not finite (NaN or infinite), so nothing "
            "can be learned or answered from them; check the model's weights, and with train.precision: bf16 try fp32"
        )


def place(result: Tensor, values: Tensor, rows: Rows, offsets: Rows | None) -> None:
    """Write one batch's values to where its rows belong."""
    if offsets is None:
        result[torch.from_numpy(rows)] = values
        return
    for value, row in zip(values, rows.tolist(), strict=True):
        start, stop = int(offsets[row]), int(offsets[row + 1])
        result[start:stop] = value[: stop - start]
