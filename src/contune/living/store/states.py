"""States as blocks: a record that says of which blocks each tensor and each list of texts is made.

Rows (along the axis in which a tensor has grown) and texts that the version before had are not written again.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from contune.contract.state import State
from contune.living.store.objects import Objects
from contune.living.store.sealed import canonical
from contune.living.store.sharing import Sharing, shared

LEAST_ROW = 64  # bytes of a row from which on rows are told apart; smaller tensors are one block
LEAST_TEXTS = 8
Record = dict[str, Any]


@final
class States:
    """States in a folder of objects. A state's name is the hash of its record."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def put(self, state: State, before: str | None = None) -> str:
        """Keep a state, sharing with the one named `before`; gives its name."""
        old = self.record(before) if before else {"tensors": {}, "texts": {}}
        tensors = {name: self._put_tensor(tensor, old["tensors"].get(name)) for name, tensor in state.tensors.items()}
        values, lists = without_texts(dict(state.values))
        texts = {place: self._put_texts(found, old["texts"].get(place)) for place, found in lists.items()}
        return self.objects.put(canonical({"format": 1, "tensors": tensors, "values": values, "texts": texts}))

    def get(self, name: str) -> State:
        """The state of that name, to the bit."""
        record = self.record(name)
        tensors = {key: self._tensor(found) for key, found in record["tensors"].items()}
        values = record["values"]
        for place, found in record["texts"].items():
            values = with_texts(values, json.loads(place), self._texts(found))
        return State(tensors, values)

    def record(self, name: str) -> Record:
        """What says of which blocks a state is made."""
        found: Record = json.loads(self.objects.get(name))
        return found

    def parts(self, name: str) -> set[str]:
        """The names of all objects that a state is made of, its record too."""
        record = self.record(name)
        entries = [*record["tensors"].values(), *record["texts"].values()]
        blocks = {block for entry in entries for block, _ in entry["blocks"]}
        return {name, *blocks, *(entry["order"] for entry in entries if entry["order"])}

    def _put_tensor(self, tensor: Tensor, old: Record | None) -> Record:
        value = tensor.detach().cpu().contiguous()
        shape, dtype = list(value.shape), str(value.dtype).removeprefix("torch.")
        axis = grown_axis(shape, old)
        record = {"dtype": dtype, "shape": shape, "axis": axis}
        width = value.nbytes // shape[axis] if shape and shape[axis] else 0
        if width < LEAST_ROW:
            block = self.objects.put(raw(value))
            return {**record, "blocks": [[block, shape[axis] if shape else 0]], "order": None}
        serves = old is not None and old["dtype"] == dtype and fits(old, shape, axis)
        kept = self._blocks(old, axis) if old is not None and serves else []
        found = shared(rows_of(value, axis), [rows_of(block, axis) for _, block in kept])
        blocks = [[kept[at][0], kept[at][1].shape[axis]] for at in found.blocks]
        if found.new:
            new = value.index_select(axis, torch.tensor(found.new))
            blocks.append([self.objects.put(raw(new)), len(found.new)])
        return {**record, "blocks": blocks, "order": self._put_order(found)}

    def _put_order(self, found: Sharing) -> str | None:
        return None if found.order is None else self.objects.put(found.order.tobytes())

    def _blocks(self, old: Record, axis: int) -> list[tuple[str, Tensor]]:
        """The blocks of an old tensor as parts of one along `axis`; a single one is whole along any."""
        along = {**old, "axis": axis}
        counts = [old["shape"][axis]] if len(old["blocks"]) == 1 and old["order"] is None else None
        return [
            (name, self._block(name, {**along, "n": n}))
            for (name, _), n in zip(old["blocks"], counts or [n for _, n in old["blocks"]], strict=True)
        ]

    def _block(self, name: str, record: Record) -> Tensor:
        shape = [record["n"] if at == record["axis"] else size for at, size in enumerate(record["shape"])]
        return tensor_of(self.objects.get(name), record["dtype"], shape)

    def _tensor(self, record: Record) -> Tensor:
        blocks = [self._block(name, {**record, "n": n}) for name, n in record["blocks"]]
        if not record["shape"]:
            return blocks[0]
        if not blocks:
            return torch.zeros(record["shape"], dtype=getattr(torch, record["dtype"]))
        whole = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=record["axis"])
        if record["order"] is None:
            return whole
        return whole.index_select(record["axis"], torch.from_numpy(self._order(record["order"])).long())

    def _order(self, name: str) -> np.ndarray[Any, np.dtype[np.int32]]:
        return np.frombuffer(self.objects.get(name), dtype=np.int32).copy()

    def _put_texts(self, texts: Sequence[str], old: Record | None) -> Record:
        kept = [(name, json.loads(self.objects.get(name))) for name, _ in (old["blocks"] if old else [])]
        found = shared(texts, [block for _, block in kept])
        blocks = [[kept[at][0], len(kept[at][1])] for at in found.blocks]
        if found.new:
            blocks.append([self.objects.put(canonical([texts[at] for at in found.new])), len(found.new)])
        return {"blocks": blocks, "order": self._put_order(found)}

    def _texts(self, record: Record) -> list[str]:
        pool: list[str] = [text for name, _ in record["blocks"] for text in json.loads(self.objects.get(name))]
        return pool if record["order"] is None else [pool[at] for at in self._order(record["order"]).tolist()]


def grown_axis(shape: Sequence[int], old: Record | None) -> int:
    """The one axis in which a shape differs from what it was; else the one it was cut along.

    >>> grown_axis([4, 6], {"shape": [4, 3], "axis": 0}), grown_axis([5], None)
    (1, 0)
    """
    if old is None or len(old["shape"]) != len(shape):
        return 0
    differ = [at for at, (now, then) in enumerate(zip(shape, old["shape"], strict=True)) if now != then]
    axis: int = differ[0] if len(differ) == 1 else old["axis"]
    return axis


def fits(old: Record, shape: Sequence[int], axis: int) -> bool:
    """Whether blocks of an old tensor can be parts of a new one along an axis; a single whole block can along any."""
    then: list[int] = old["shape"]
    if len(then) != len(shape) or any(then[at] != shape[at] for at in range(len(shape)) if at != axis):
        return False
    return bool(old["axis"] == axis or (len(old["blocks"]) == 1 and old["order"] is None))


def rows_of(tensor: Tensor, axis: int) -> list[bytes]:
    """The slices of a tensor along an axis, each as bytes."""
    moved = tensor.movedim(axis, 0).contiguous()
    data, count = raw(moved), len(moved)
    width = len(data) // count if count else 0
    return [data[at * width : (at + 1) * width] for at in range(count)]


def raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor, row by row."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tensor_of(data: bytes, dtype: str, shape: Sequence[int]) -> Tensor:
    """The tensor that `raw` wrote."""
    if not data:
        return torch.zeros(list(shape), dtype=getattr(torch, dtype))
    flat = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
    return flat.reshape(list(shape))


def without_texts(values: Any, place: tuple[str | int, ...] = ()) -> tuple[Any, dict[str, list[str]]]:
    """Plain values with every longer list of texts taken out, and those lists by their place (as JSON).

    >>> without_texts({"a": ["x"] * 8, "b": 1})
    ({'a': None, 'b': 1}, {'["a"]': ['x', 'x', 'x', 'x', 'x', 'x', 'x', 'x']})
    """
    if isinstance(values, list) and len(values) >= LEAST_TEXTS and all(isinstance(one, str) for one in values):
        return None, {json.dumps(place): values}
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else None
    if items is None:
        return values, {}
    lists: dict[str, list[str]] = {}
    kept = {}
    for key, inner in items:
        kept[key], found = without_texts(inner, (*place, key))
        lists |= found
    return (kept if isinstance(values, Mapping) else list(kept.values())), lists


def with_texts(values: Any, place: Sequence[str | int], texts: list[str]) -> Any:
    """Plain values with a list of texts back in its place."""
    if not place:
        return texts
    values[place[0]] = with_texts(values[place[0]], place[1:], texts)
    return values
