"""Images: encoded ones become RGB arrays, the same way for training and for prediction."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from contune.errors import DataError
from contune.stream.modality import Arrays, Content, Modality, as_bytes
from contune.stream.task import Image

if TYPE_CHECKING:
    from contune.backbone.assemble import Assembly
    from contune.backbone.config import ModelConfig

# Pillow would also open formats that start other programs (EPS calls Ghostscript); a data file must not do that.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


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
class Images(Modality):
    """An RGB image of shape (height, width, 3) in uint8."""

    name = "image"
    noun = "images"
    input_name = "pixel_values"
    columns = ("image", "img")
    binary = True
    suffixes = SUFFIXES
    model_keys = frozenset({"image_size"})
    class_prompt = "a photo of a {}"
    costly = True
    augmentable = True

    def refuse_column(self, column: str, binary: Sequence[str]) -> str | None:
        if column in binary:
            return None
        return (
            f"column {column!r} does not hold images; images come as the struct of bytes and path (or plain bytes) of a "
            "Parquet file, or as a folder of images"
        )

    def holds(self, value: object) -> bool:
        return isinstance(value, np.ndarray) or _is_pillow(value)

    def refuse(self, value: Any, columns: str) -> str | None:
        good = (isinstance(value, bytes) and value) or self.holds(value)
        return None if good else f"the image ({columns}) has no bytes"

    def pack(self, value: Any) -> bytes:
        return bytes(value)

    def decode(self, value: Any) -> Image:
        if isinstance(value, bytes):
            return decode_image(value)
        if _is_pillow(value):
            return _to_rgb(value)
        return checked_image(value)

    def content(self, item: Any) -> Content:
        return Content(as_bytes(item), item.shape)

    def state(self, inputs: Sequence[Any]) -> tuple[Arrays, Mapping[str, Any]]:
        images = [np.ascontiguousarray(image) for image in inputs]
        flat = np.concatenate([image.ravel() for image in images]) if images else np.empty(0, dtype=np.uint8)
        sizes = np.array([image.shape[:2] for image in images], dtype=np.int64).reshape(-1, 2)
        return {"pixels": flat, "sizes": sizes}, {}

    def from_state(self, arrays: Arrays, values: Mapping[str, Any]) -> list[Image]:
        return split_images(arrays["pixels"], arrays["sizes"].tolist())

    def example(self) -> Image:
        return np.zeros((16, 16, 3), dtype=np.uint8)

    def processor(self, where: str, local: bool) -> Any:
        from contune.backbone.load import load_image_settings

        return load_image_settings(where, local)

    def assemble(self, config: "ModelConfig", model: Any, processor: Any, where: str, local: bool) -> "Assembly":
        from contune.backbone.assemble import assemble_image

        return assemble_image(config, model, processor)


def checked_image(value: object) -> Image:
    """The value, which must be an RGB image; raises DataError with a clause."""
    if not isinstance(value, np.ndarray):
        raise DataError(f"it is a {type(value).__name__}; give an RGB array in uint8 or a Pillow image")
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or 0 in value.shape:
        raise DataError(
            f"it has shape {value.shape} and type {value.dtype}; give RGB arrays (height, width, 3) in uint8"
        )
    return value


def split_images(flat: NDArray[Any], sizes: Iterable[list[int]]) -> list[Image]:
    """Cut one flat run of RGB bytes into images of the given (height, width)."""
    images, start = [], 0
    for height, width in sizes:
        stop = start + height * width * 3
        images.append(flat[start:stop].reshape(height, width, 3))
        start = stop
    return images


def _is_pillow(value: object) -> bool:
    import PIL.Image

    return isinstance(value, PIL.Image.Image)
