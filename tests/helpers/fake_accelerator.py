"""An accelerator that is not there: tensors on a device `far` of their own, which compute on the processor.

It refuses what a real accelerator refuses, which a processor lets pass: operations on tensors of two devices (a single
number from the processor may take part), indices of the device into a tensor of the processor, random numbers from the
processor's generator, and a look at its memory by NumPy. It is loaded for good, so it needs a process of its own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "far"
COPIES = ("aten::copy_", "aten::_to_copy")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
GATHERED = ("aten::cat", "aten::stack")
PLAIN_ATTENTION = 0


class Far(Tensor):
    """A tensor of the device; `held` is where its numbers really are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Far":
        place = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=f"{NAME}:0", **place)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"Far({self.held!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(tensors: dict[str, Tensor], *_: Any) -> "Far":
        return Far(tensors["held"])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            return args[0].held.tolist()
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"cannot turn a tensor of {NAME}:0 into an array; use Tensor.cpu() first")
        if func in (Tensor.untyped_storage, Tensor.data_ptr):  # safetensors asks which tensors share memory
            return func(args[0].held)
        if func == Tensor.data.__set__ and isinstance(args[1], Far):
            args[0].held = args[1].held
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], with_tensors(args[1]), *args[2:])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, *args, **(kwargs or {}))


def with_tensors(index: Any) -> Any:
    """An index whose lists are tensors: torch would make them on the device, below what can be seen from here."""
    if isinstance(index, tuple):
        return tuple(with_tensors(each) for each in index)
    return torch.tensor(index, dtype=None if index else torch.int64) if isinstance(index, list) else index


def run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """One operation of torch, where any of its tensors or its result is on the device."""
    name = func._schema.name
    refuse(name, args, kwargs)
    if name == "aten::_fused_sdp_choice":
        return PLAIN_ATTENTION
    to = kwargs.get("device")
    stays = to is None or torch.device(to).type == NAME
    near = {key: value for key, value in kwargs.items() if key != "pin_memory"} | (
        {} if to is None else {"device": "cpu"}
    )
    found = func(*tree_map(held, args), **tree_map(held, near))
    if not stays:
        return found
    if name == "aten::copy_":
        return args[0]
    return return_and_correct_aliasing(
        func, args, kwargs, tree_map(lambda x: Far(x) if isinstance(x, Tensor) else x, found)
    )


def held(value: Any) -> Any:
    return value.held if isinstance(value, Far) else value


def refuse(name: str, args: Any, kwargs: Any) -> None:
    """Fail as an accelerator fails."""
    every = tree_leaves((args, kwargs))
    if any(isinstance(value, torch.Generator) for value in every):
        raise RuntimeError(f"{name}: a generator of {NAME} is expected, and this is one of the processor")
    if name in COPIES:
        return
    if name in INDEXED and isinstance(args[0], Far):
        every = [args[0], *args[2:3]]  # the indices themselves may be from the processor
    near = [x for x in every if isinstance(x, Tensor) and not isinstance(x, Far) and (x.dim() or name in GATHERED)]
    if near and any(isinstance(value, Far) for value in every):
        raise RuntimeError(
            f"{name}: tensors of {NAME}:0 and of the processor, these of shape {[tuple(x.shape) for x in near]}"
        )


class Factories(TorchFunctionMode):
    """Makes new tensors of the device on the processor first: torch fills them below what can be seen from here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to = kwargs.get("device")
        new = not any(isinstance(value, Tensor) for value in tree_leaves(args))
        if new and func is not torch.Generator and to is not None and torch.device(to).type == NAME:
            return func(*args, **{**kwargs, "device": "cpu"}).to(NAME)
        return func(*args, **kwargs)


class Backend(_DummyBackendModule):
    """What torch asks of any device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16]


def install() -> None:
    """Make the device known to torch, for as long as the process lives."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    _operations.fallback(run, "PrivateUse1")
    _factories.__enter__()


_operations = torch.library.Library("_", "IMPL")  # its fallback is forgotten with it
_factories = Factories()
