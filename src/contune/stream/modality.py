"""What a kind of input is: how it is found, decoded, hashed, stored and read by a model; each a file of `contune.modality`.

This page is the abstract class and the way to its members; they are found by walking that package, entry points
(`contune.modalities`) and plugins, so that a new one is known without being registered anywhere.
"""

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contune.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from contune.backbone.assemble import Assembly
    from contune.backbone.config import ModelConfig

Arrays = Mapping[str, NDArray[Any]]
# Entries of a model's configuration that some modalities alone have a use for.
MODEL_KEYS = frozenset({"image_size", "max_length", "template", "cut_prompts"})
_plugins: list[ModuleType] = []


class Content(NamedTuple):
    """What an input is to a hash: its bytes, and its shape where bytes alone would not tell."""

    data: bytes | memoryview
    shape: tuple[int, ...] | None = None


class Modality(ABC):
    """One kind of input.

    `noun` is what a model reads in a sentence, `input_name` what stock models that read it call their main input;
    `built_on` is the modality such models are of by themselves where they have no own, and `demand` goes on with a sentence
    about a model that reads another. `columns` are the usual names of a table's column, which holds bytes where `binary`;
    `suffixes` those of files that are one input each. `model_keys` are the entries among `MODEL_KEYS` that it has a use for.
    `asked_with` are other modalities whose inputs a model of this one can be asked with. `class_prompt` makes a text of the
    name of a class. `conversations`: inputs are prompts with the answers that are right. `asked_for`: its columns are
    looked for only where an objective asks for it. `costly`: decoding takes so long
    that decoded inputs are worth keeping. `augmentable`: there are augmented views.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    input_name: ClassVar[str | None] = None
    built_on: ClassVar[str | None] = None
    demand: ClassVar[str] = ""
    columns: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = ()
    model_keys: ClassVar[frozenset[str]] = frozenset()
    asked_with: ClassVar[frozenset[str]] = frozenset()
    class_prompt: ClassVar[str] = "{}"
    conversations: ClassVar[bool] = False
    asked_for: ClassVar[bool] = False
    costly: ClassVar[bool] = False
    augmentable: ClassVar[bool] = False

    @property
    def hash_name(self) -> str:
        """What hashes of its inputs begin with."""
        return self.name

    def find(self, columns: Sequence[str], binary: Sequence[str]) -> tuple[str, ...] | None:
        """The columns of a table that hold such inputs by their usual names; `binary` are those that hold bytes."""
        names = (name for name in self.columns if name in columns and (name in binary) == self.binary)
        return next(((name,) for name in names), None)

    def refuse_column(self, column: str, binary: Sequence[str]) -> str | None:
        """Why a column that was named for it cannot hold such inputs, as a clause; None where it can."""
        return None

    @abstractmethod
    def holds(self, value: object) -> bool:
        """Whether a Python object is such an input, or can be made one by `decode`."""

    @abstractmethod
    def refuse(self, value: Any, columns: str) -> str | None:
        """Why a table's value cannot be such an input, seen without decoding it, as a clause; None where it can.

        The value of several columns is the tuple of theirs; `columns` is how a sentence names them.
        """

    @abstractmethod
    def pack(self, value: Any) -> bytes:
        """The bytes that a good value of a table is put away as until it is decoded."""

    @abstractmethod
    def decode(self, value: Any) -> Any:
        """The input from packed bytes, from those of a file, or from a Python object that it `holds`.

        Raises DataError with a clause where it cannot be read.
        """

    def nbytes(self, item: Any) -> int:
        """Bytes that a decoded input takes in memory."""
        return len(self.content(item).data)

    @abstractmethod
    def content(self, item: Any) -> Content:
        """All that an input is, to be hashed."""

    @abstractmethod
    def state(self, inputs: Sequence[Any]) -> tuple[Arrays, Mapping[str, Any]]:
        """Inputs as named arrays and plain JSON values."""

    @abstractmethod
    def from_state(self, arrays: Arrays, values: Mapping[str, Any]) -> list[Any]:
        """The inputs that `state` put away."""

    @abstractmethod
    def example(self) -> Any:
        """Some small input, to look into a model with."""

    @abstractmethod
    def processor(self, where: str, local: bool) -> Any:
        """What a model's folder or hub id says about reading inputs (a tokenizer, settings); loaded before its weights."""

    @abstractmethod
    def assemble(self, config: "ModelConfig", model: Any, processor: Any, where: str, local: bool) -> "Assembly":
        """The loaded stock model with its reader."""


def add_modalities(module: ModuleType) -> None:
    """Make the modalities of a user's module known."""
    if module not in _plugins:
        _plugins.append(module)
    modalities.cache_clear()


@cache
def modalities() -> dict[str, Modality]:
    """All modalities by name."""
    package = importlib.import_module("contune.modality")
    own = [
        importlib.import_module(f"contune.modality.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    ]
    found: dict[str, Modality] = {}
    for module in (*own, *_plugins):
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Modality) and cls.__module__ == module.__name__ and not inspect.isabstract(cls):
                found[cls.name] = cls()
    for entry in entry_points(group="contune.modalities"):
        made: Modality = entry.load()()
        found.setdefault(made.name, made)
    return dict(sorted(found.items()))


def find_modality(name: str) -> Modality:
    """The modality of that name; raises DataError where there is none.

    >>> find_modality("text").columns[0]
    'text'
    """
    known = modalities()
    if name == "language":
        raise DataError("modality 'language' is now called 'chat', after what its inputs are; write 'chat'")
    if name not in known:
        raise DataError(f"modality {name!r} is unknown; {did_you_mean(name, known)}")
    return known[name]


def file_modality(name: str) -> Modality | None:
    """The modality that files of this name are one input of, by their suffix."""
    lower = name.lower()
    return next((one for one in modalities().values() if one.suffixes and lower.endswith(one.suffixes)), None)


def file_suffixes() -> tuple[str, ...]:
    """The suffixes of all files that are one input each."""
    return tuple(suffix for one in modalities().values() for suffix in one.suffixes)


def is_unicode(value: str) -> bool:
    """Whether it can be written at all: JSON can spell half a surrogate pair, which no UTF-8 file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of an array, row by row."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
