"""Model folders on disk: safetensors read lazily, one tensor at a time, and written the same way; never pickle."""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from contune._files import write_json
from contune.backbone.source import PACKAGED, PICKLES, packaged_folder
from contune.errors import DataError, NumericError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
SHARD_BYTES = 5_000_000_000


@final
@dataclass(frozen=True)
class Spec:
    """Type and shape of a tensor, known before its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in a file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@final
class StoredTensors(Mapping[str, Tensor]):
    """The tensors of some safetensors files by name; a tensor is read when it is asked for, and not kept."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.specs: dict[str, Spec] = {}
        self._homes: dict[str, Any] = {}
        for file in files:
            try:
                opened: Any = safe_open(file, framework="pt")
                for name in opened.keys():  # noqa: SIM118  # the handle is no mapping
                    self.specs[name] = spec_of(opened.get_slice(name), file, name)
                    self._homes[name] = opened
            except (SafetensorError, OSError) as error:
                raise DataError(f"{file} cannot be read as safetensors ({error}); copy or download it again") from error

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._homes[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def spec_of(piece: Any, file: Path, name: str) -> Spec:
    """Type and shape of a stored tensor; types that arithmetic does not fit, such as 8-bit floats, are refused."""
    code = piece.get_dtype()
    if code not in DTYPES:
        raise DataError(
            f"{name} in {file} has the type {code}, which cannot be merged; save the model in bfloat16 or float32 first"
        )
    return Spec(DTYPES[code], tuple(piece.get_shape()))


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a model folder: `<stem>.safetensors`, or the shards that its index names."""
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if missing or not names:
            raise DataError(f"{index} names {missing or 'no files'}, which are not beside it; download the model again")
        return [folder / name for name in names]
    pickled = sorted(found.name for pattern in PICKLES for found in folder.glob(pattern))
    if pickled:
        raise DataError(
            f"{folder} holds {pickled[0]} and no {whole.name}: pickled weights can run code when they are read, so they "
            "are refused; load the model where you trust it and save it once more with save_pretrained"
        )
    raise DataError(f"{folder} holds no {whole.name} (nor its shards); give a folder that save_pretrained wrote")


def existing_folder(path: str | Path, what: str) -> Path:
    """A folder on this machine; the name of the packaged sentence encoder stands for its folder."""
    folder = packaged_folder() if str(path) == PACKAGED else Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"{what} {str(path)!r} is not a folder; give a local folder (download a hub model first)")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path.parent} has no {path.name}; give a folder that save_pretrained wrote") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); repair it or copy it again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object; copy it again")
    return value


def write_tensors(
    folder: Path,
    stem: str,
    specs: Mapping[str, Spec],
    tensor: Callable[[str], Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
    watch: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> None:
    """Write `<stem>.safetensors`, or shards with an index, holding one tensor at a time; in the order of `specs`."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.nbytes
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        names = [f"{stem}-{place + 1:05d}-of-{len(shards):05d}.safetensors" for place in range(len(shards))]
        homes = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(spec.nbytes for spec in specs.values())
        write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": homes})
    steps = iter(watch(specs))
    for file, shard in zip(names, shards, strict=True):
        write_shard(folder / file, {name: specs[name] for name in shard}, lambda _: tensor(next(steps)))
    next(steps, None)  # lets the bar finish


def write_shard(path: Path, specs: Mapping[str, Spec], tensor: Callable[[str], Tensor]) -> None:
    """One safetensors file: the length of the header, the header, the bytes of all tensors in its order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, spec in specs.items():
        end = place + spec.nbytes
        header[name] = {"dtype": CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, spec in specs.items():
            value = narrowed(tensor(name), spec, name)
            file.write(value.reshape(-1).view(torch.uint8).numpy().data)


def narrowed(value: Tensor, spec: Spec, name: str) -> Tensor:
    """The tensor in the type it is stored in; what is not finite there is refused."""
    assert tuple(value.shape) == spec.shape, (name, value.shape, spec.shape)
    result = value.detach().to(spec.dtype).contiguous()
    if spec.dtype.is_floating_point and not bool(result.isfinite().all()):
        raise NumericError(
            f"{name} has entries that are not finite in {str(spec.dtype).removeprefix('torch.')}; check the models for "
            "infinite weights, or make the weights and the scale of the merge smaller"
        )
    return result


def file_order(specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """Wide types first, so that every tensor in the file is aligned, then by name."""
    return dict(sorted(specs.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
