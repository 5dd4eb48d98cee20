"""Encoded images to RGB arrays, the same way for training and for prediction."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast, final, overload

import numpy as np

from contune.errors import DataError
from contune.stream.read.rows import BadRow, Row
from contune.stream.task import Image, Inputs

# Pillow would also open formats that start other programs (EPS calls Ghostscript); a data file must not do that.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
DECODED_BYTES_LIMIT = 1 << 30


def decode_image(data: bytes) -> Image:
    """Decode one image to RGB, shape (height, width, 3) in uint8, upright by its EXIF orientation.

    Grey is repeated, palettes are resolved, transparency is laid over white, 16-bit grey keeps its high byte, and of
    an animation the first frame is taken. Raises DataError where the bytes are no image or a damaged one.
    """
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            return _to_rgb(image)
    except DataError:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise DataError(f"it is too large ({error})") from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"its bytes are none of {', '.join(FORMATS)}") from error
    except Exception as error:
        # Pillow's decoders report damage with a dozen exception types (OSError, SyntaxError, struct.error, ...).
        raise DataError(f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Any) -> Image:
    import PIL.Image
    import PIL.ImageOps

    upright = PIL.ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise DataError("its pixels are floating point numbers, whose range is unknown; save it with 8 or 16 bits")
    if upright.mode.startswith("I"):
        return _sixteen_bit_to_rgb(np.asarray(upright))
    if "A" in upright.getbands() or "transparency" in upright.info:
        layered = upright.convert("RGBA")
        white = PIL.Image.new("RGBA", layered.size, (255, 255, 255, 255))
        upright = PIL.Image.alpha_composite(white, layered)
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def _sixteen_bit_to_rgb(values: Any) -> Image:
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < 1 << 16:
        raise DataError("its pixels have 32 bits; save it with 8 or 16 bits")
    grey = (values.astype(np.int64) >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


@final
@dataclass(frozen=True, eq=False)
class EncodedImages(Sequence[Image]):
    """Images kept as encoded bytes and decoded at each access; for sets whose pixels would fill the memory."""

    encoded: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.encoded)

    @overload
    def __getitem__(self, at: int) -> Image: ...
    @overload
    def __getitem__(self, at: slice) -> "EncodedImages": ...
    def __getitem__(self, at: int | slice) -> "Image | EncodedImages":
        if isinstance(at, slice):
            return EncodedImages(self.encoded[at])
        return decode_image(self.encoded[at])

    def __iter__(self) -> Iterator[Image]:
        return map(decode_image, self.encoded)


def as_inputs(rows: Sequence[Row]) -> Inputs:
    """The inputs of rows that are all of one kind: texts, decoded images, or images to decode at access."""
    encoded = [row.input for row in rows if isinstance(row.input, bytes)]
    return EncodedImages(encoded) if encoded else cast(Inputs, [row.input for row in rows])


def decode_rows(rows: Sequence[Row], *, limit: int = DECODED_BYTES_LIMIT) -> tuple[list[Row], list[BadRow]]:
    """Decode every image once: the good rows, decoded unless all together exceed `limit` bytes, and the bad ones.

    Above the limit the rows come back encoded, but each has been proven decodable.
    """
    good: list[Row] = []
    bad: list[BadRow] = []
    decoded: list[Row] = []
    size = 0
    for row in rows:
        if not isinstance(row.input, bytes):
            good.append(row)
            decoded.append(row)
            continue
        try:
            image = decode_image(row.input)
        except DataError as error:
            bad.append(BadRow(row.place, f"the image cannot be read ({error})", "replace or remove it"))
            continue
        good.append(row)
        size += image.nbytes
        if size <= limit:
            decoded.append(row._replace(input=image))
        else:
            decoded.clear()
    return (decoded if size <= limit else good), bad
