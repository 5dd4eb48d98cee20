"""The store of frozen results: features and lower hidden states, computed once per example.

Everything here is a pure function of a data set and frozen weights, computed over the whole data set in a fixed order
and in fixed batches. So it gives the same bits whether it was kept, dropped or recomputed after a kill.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from contune._files import atomic_path
from contune.contract.data import Dataset, Rows
from contune.contract.processes import Processes
from contune.contract.settings import CacheSettings
from contune.metric.ledger import Ledger

Compute = Callable[[Rows], Tensor]
Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def no_watch(_title: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A progress watcher that shows nothing."""
    return nullcontext(lambda _count: None)


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


@final
class FrozenStore:
    """Keeps frozen results under a limit: in memory, or in a folder that several runs may share.

    When the limit is reached the result used longest ago is dropped; a result larger than the limit is never kept.
    """

    def __init__(self, settings: CacheSettings, ledger: Ledger, processes: Processes, watch: Watch = no_watch) -> None:
        self.settings = settings
        self.ledger = ledger
        self.processes = processes
        self.watch = watch
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def features(self, dataset: Dataset, name: str | None, width: int, compute: Compute) -> Tensor:
        """Features (n, width) of the whole data set; kept under `name`, or computed afresh where that is None."""
        keep = name if self.settings.features else None
        return self._get(dataset, keep, (len(dataset), width), compute, None)

    def hidden(self, dataset: Dataset, name: str, width: int, compute: Compute) -> Ragged | None:
        """Hidden states of the whole data set, or None where they do not fit under the limit."""
        lengths = dataset.prepared.lengths
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        shape = (int(offsets[-1]), width)
        if not self.settings.hidden or not self._fits(shape):
            return None
        return Ragged(self._get(dataset, name, shape, compute, offsets), offsets)

    def keeps_features(self, shape: tuple[int, int]) -> bool:
        """Whether features of this shape would be kept, so that asking for them batch by batch is cheap."""
        return self.settings.features and self._fits(shape)

    def _fits(self, shape: tuple[int, int]) -> bool:
        return self.settings.folder is not None or shape[0] * shape[1] * 4 <= self.settings.memory_mb * 2**20

    def _get(
        self, dataset: Dataset, name: str | None, shape: tuple[int, int], compute: Compute, offsets: Rows | None
    ) -> Tensor:
        if name is None:
            return self._compute(dataset, shape, compute, offsets, "features")
        key = f"{name}-{dataset.key}"
        found = self._find(key)
        if found is not None:
            return found
        result = self._compute(dataset, shape, compute, offsets, name.split("-")[0])
        self._keep(key, result)
        return result

    def _find(self, key: str) -> Tensor | None:
        if self.settings.folder is not None:
            path = Path(self.settings.folder) / f"{key}.safetensors"
            if not path.exists():
                return None
            with safe_open(path, "pt") as file:
                result: Tensor = file.get_tensor("result")
            return result
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        return None

    def _keep(self, key: str, result: Tensor) -> None:
        if self.settings.folder is not None:
            folder = Path(self.settings.folder)
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(folder / f"{key}.safetensors") as temporary:
                save_file({"result": result.contiguous()}, temporary)
            return
        limit = self.settings.memory_mb * 2**20
        if result.nbytes > limit:
            return
        self._kept[key] = result
        while sum(tensor.nbytes for tensor in self._kept.values()) > limit:
            self._kept.popitem(last=False)

    def _compute(
        self, dataset: Dataset, shape: tuple[int, int], compute: Compute, offsets: Rows | None, title: str
    ) -> Tensor:
        result = torch.zeros(shape)
        batches = list(fixed_batches(dataset.prepared.lengths, self.settings.batch_size))
        with torch.no_grad(), self.watch(title, len(dataset)) as advance:
            for number, rows in enumerate(batches):
                if number % self.processes.count == self.processes.rank:
                    values = compute(rows).to("cpu", torch.float32)
                    self.ledger.examples_forward += len(rows)
                    place(result, values, rows, offsets)
                advance(len(rows))
        self.processes.sum_([result])
        return result


def place(result: Tensor, values: Tensor, rows: Rows, offsets: Rows | None) -> None:
    """Write one batch's values to where its rows belong."""
    if offsets is None:
        result[torch.from_numpy(rows)] = values
        return
    for value, row in zip(values, rows.tolist(), strict=True):
        start, stop = int(offsets[row]), int(offsets[row + 1])
        result[start:stop] = value[: stop - start]
