"""Small data files for the stream tests, written where a test says."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from contune.stream import DataConfig, Stream, StreamConfig, load_stream


def write_lines(path: Path, rows: Iterable[Mapping[str, object] | str]) -> Path:
    """JSON lines; a string is written as it is, so that a row can be broken."""
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def labelled(labels: Iterable[object], prefix: str = "text") -> list[dict[str, object]]:
    """One row per label with a text of its own."""
    return [{"text": f"{prefix} {at}", "label": label} for at, label in enumerate(labels)]


def png(seed: int, size: tuple[int, int] = (4, 4)) -> bytes:
    """A PNG of random RGB pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "PNG")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_image_parquet(
    path: Path, images: Sequence[bytes | None], labels: Sequence[int | None], names: Sequence[str] | None = None
) -> Path:
    """The hub's image layout: a struct of bytes and path, and class labels declared in the schema's metadata."""
    structs = [{"bytes": image, "path": None} for image in images]
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(structs, image_type), "label": pa.array(labels, pa.int64())})
    features: dict[str, object] = {"image": {"_type": "Image"}}
    if names is not None:
        features["label"] = {"_type": "ClassLabel", "names": list(names)}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def load(train: Path, test: Path, **keys: object) -> Stream:
    """A stream of two files, cut into one task unless `keys` say otherwise."""
    if not {"tasks", "sizes", "by"} & keys.keys():
        keys["tasks"] = 1
    return load_stream(StreamConfig(data=DataConfig(train=str(train), test=str(test)), **keys))
