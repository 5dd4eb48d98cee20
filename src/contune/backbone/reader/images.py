"""Images as the pixels a model was trained on: resized, cropped and normalised in tensors, without torchvision.

On the CPU, resizing stays in uint8, where PyTorch's antialiased kernels follow Pillow's; elsewhere it runs in float
and rounds. Shapes: B images, H and W pixels.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from contune.backbone.reader.inputs import ModelInputs, Prepared, PreparedItems, Reader, Rows, gather
from contune.errors import CombinationError, ConfigError, DataError
from contune.stream.inputs import Inputs, held
from contune.stream.task import Image

Resample = Literal["nearest", "bilinear", "bicubic"]
# Pillow's numbers for its filters, as preprocessor files give them.
_RESAMPLE: dict[int, Resample] = {0: "nearest", 2: "bilinear", 3: "bicubic"}

# Random resized crops as Inception draws them (arXiv 1409.4842, section 6): 8 to 100 % of the area, sides 3:4 to 4:3.
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
# A drawn box can be larger than a long, thin image; of this many drawn, the first that fits is used.
_CROP_TRIES = 10

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the model's input of `size` = (height, width).

    `shortest_edge` is set where the short side is resized to it first and the middle is cropped; otherwise the image
    is resized to `size` and its proportions change. `mean` and `std` apply after multiplying by `scale`.
    """

    size: tuple[int, int]
    shortest_edge: int | None
    resample: Resample
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_preprocessing(settings: dict[str, Any], image_size: int | None, name: str) -> Preprocessing:
    """The preprocessing that an image processor's settings describe, for `image_size` where that is given.

    Raises `ConfigError` for what has no counterpart here.
    """
    if not settings.get("do_resize", True):
        raise ConfigError(f"the preprocessor of {name} does not resize; contune needs one input size, set do_resize")
    code = int(settings.get("resample", 2))
    if code not in _RESAMPLE:
        raise ConfigError(
            f"the preprocessor of {name} has resample {code}; contune can do 0 nearest, 2 bilinear, 3 bicubic"
        )
    size, edge = _sizes(settings, name)
    if image_size is not None:
        # The margin that the middle crop cuts away keeps its share of the image.
        edge = None if edge is None else round(edge * image_size / min(size))
        size = (image_size, image_size)
    normalise = settings.get("do_normalize", True)
    return Preprocessing(
        size=size,
        shortest_edge=edge,
        resample=_RESAMPLE[code],
        scale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
        mean=_channels(settings["image_mean"]) if normalise else (0.0, 0.0, 0.0),
        std=_channels(settings["image_std"]) if normalise else (1.0, 1.0, 1.0),
    )


def _sizes(settings: dict[str, Any], name: str) -> tuple[tuple[int, int], int | None]:
    """The final (height, width), and the short side before the middle crop where there is one."""
    size, crop = settings.get("size"), settings.get("crop_size")
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if not settings.get("do_center_crop"):
        crop = None
    if size and crop and "shortest_edge" in size and "longest_edge" not in size:
        return (int(crop["height"]), int(crop["width"])), int(size["shortest_edge"])
    if size and not crop and "height" in size:
        return (int(size["height"]), int(size["width"])), None
    if size and crop and "height" in size and size == crop:
        return (int(size["height"]), int(size["width"])), None
    raise ConfigError(
        f"the preprocessor of {name} has size {size} and crop {crop}; contune can resize to a "
        "fixed height and width, or resize the shortest edge and crop the middle"
    )


def _channels(values: Any) -> tuple[float, float, float]:
    three = [float(value) for value in values] if isinstance(values, list | tuple) else [float(values)] * 3
    if len(three) != 3:
        raise ConfigError(
            f"the preprocessor has {len(three)} channel values {three}; contune reads RGB images, 3 channels"
        )
    return three[0], three[1], three[2]


def resize(images: Tensor, size: tuple[int, int], resample: Resample) -> Tensor:
    """Images (B, 3, H, W) in uint8, resized with antialiasing to (B, 3, *size) in uint8, close to Pillow's result.

    Columns come before rows, as in Pillow up to 12, with which today's models were trained. Pillow 13 takes rows first
    where the height shrinks much more than the width; there single pixels differ by more than rounding.

    >>> resize(torch.full((1, 3, 4, 4), 7, dtype=torch.uint8), (2, 2), "bicubic").unique().tolist()
    [7]
    """
    if images.shape[-2:] == size:
        return images
    if resample == "nearest":
        return functional.interpolate(images, size, mode="nearest-exact")
    if images.device.type == "cpu":
        return functional.interpolate(images, size, mode=resample, antialias=True)
    return resize_float(images, size, resample)


def resize_float(images: Tensor, size: tuple[int, int], resample: Literal["bilinear", "bicubic"]) -> Tensor:
    """The same as `resize`, in float: columns first, then rows, each rounded to whole values as Pillow does."""
    wide = images.float()
    for step in ((wide.shape[-2], size[1]), size):
        wide = functional.interpolate(wide, step, mode=resample, antialias=True).add_(0.5).floor_().clamp_(0, 255)
    return wide.to(torch.uint8)


def view(images: Tensor, how: Preprocessing) -> Tensor:
    """The model's deterministic view of equally large images: (B, 3, H, W) uint8 to (B, 3, *how.size) uint8."""
    if how.shortest_edge is None:
        return resize(images, how.size, how.resample)
    return middle(resize(images, short_side_size(images.shape[-2:], how.shortest_edge), how.resample), how.size)


def short_side_size(given: Sequence[int], edge: int) -> tuple[int, int]:
    """(height, width) with the short side `edge` and the proportions of `given`; the long side is rounded down.

    >>> short_side_size((30, 40), 224), short_side_size((40, 30), 224)
    ((224, 298), (298, 224))
    """
    height, width = given
    if height <= width:
        return edge, int(edge * width / height)
    return int(edge * height / width), edge


def middle(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle (B, 3, *size) of images (B, 3, H, W), with a black border where they are smaller."""
    rows, columns = (max(0, wanted - have) for wanted, have in zip(size, images.shape[-2:], strict=True))
    if rows or columns:
        border = (-(-columns // 2), columns // 2, -(-rows // 2), rows // 2)
        images = functional.pad(images, border)
    top, left = ((have - wanted) // 2 for wanted, have in zip(size, images.shape[-2:], strict=True))
    return images[:, :, top : top + size[0], left : left + size[1]]


def normalise(images: Tensor, how: Preprocessing) -> Tensor:
    """uint8 (B, 3, H, W) to float32: (scale * x - mean) / std per channel."""
    mean = torch.tensor(how.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(how.std, device=images.device).view(1, 3, 1, 1)
    return images.to(torch.float32, memory_format=torch.contiguous_format).mul_(how.scale / std).sub_(mean / std)


def draw_crops(sizes: Sequence[tuple[int, int]], generator: torch.Generator) -> tuple[list[Box], list[bool]]:
    """For images of the given (height, width): a random box (top, left, height, width), and whether to flip.

    Area and the logarithm of the ratio are uniform in `CROP_AREA` and `CROP_RATIO`. Every image takes the same number
    of draws whatever comes out, so its crop depends on its place in the batch and the generator alone.
    """
    draws = torch.rand(len(sizes), _CROP_TRIES, 4, generator=generator, dtype=torch.float64).tolist()
    flips = torch.rand(len(sizes), generator=generator) < 0.5
    return [_box(size, tries) for size, tries in zip(sizes, draws, strict=True)], flips.tolist()


def draw_view(image: Image, view: int) -> tuple[Box, bool]:
    """Box and flip of the image's fixed augmented view of that number, by its pixels and the number alone.

    So the view is the same in every run and in every set that the image is part of.

    >>> image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    >>> draw_view(image, 0) == draw_view(image.copy(), 0) != draw_view(image, 2)
    True
    """
    digest = hashlib.blake2b(f"{view}|{image.shape}|".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(image).data)
    generator = torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
    (box,), (flip,) = draw_crops([_size(image)], generator)
    return box, flip


def one_view(parts: Sequence[PreparedItems]) -> int | None:
    """The view that all parts of a batch show."""
    views = {prepared.view for prepared in parts}
    if len(views) > 1:
        raise CombinationError(f"a batch was asked for in the views {views}; make one batch for each view")
    return views.pop()


def _size(image: Image) -> tuple[int, int]:
    return int(image.shape[0]), int(image.shape[1])


def _box(size: tuple[int, int], tries: list[list[float]]) -> Box:
    height, width = size
    for area, ratio, down, right in tries:
        target = height * width * (CROP_AREA[0] + area * (CROP_AREA[1] - CROP_AREA[0]))
        aspect = CROP_RATIO[0] * (CROP_RATIO[1] / CROP_RATIO[0]) ** ratio
        rows, columns = round((target / aspect) ** 0.5), round((target * aspect) ** 0.5)
        if 0 < rows <= height and 0 < columns <= width:
            return int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns
    rows = min(height, round(width / CROP_RATIO[0]))
    columns = min(width, round(height * CROP_RATIO[1]))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


@final
@dataclass(frozen=True, eq=False)
class ImageReader(Reader):
    """Reads RGB images in uint8 with a model's own preprocessing; `positions` is what each takes in the model."""

    how: Preprocessing
    positions: int
    device: torch.device

    def description(self) -> str:
        return repr(self.how)

    def prepare(self, inputs: Inputs) -> PreparedItems:
        for row, item in held(inputs):
            _require_image(item, row)
        return PreparedItems(inputs, self.positions)

    def collate(
        self,
        parts: Sequence[tuple[Prepared, Rows]],
        *,
        augment: torch.Generator | None,
        pixels: bool,
    ) -> ModelInputs:
        pairs = gather(parts, PreparedItems)
        if not pixels:
            return ModelInputs(len(pairs))
        images = [prepared.items[row] for prepared, row in pairs]
        view = one_view([prepared for prepared, _ in pairs])
        if augment is not None:
            small = self._crops(images, *draw_crops([_size(image) for image in images], augment))
        elif view is not None:
            drawn = [draw_view(image, view) for image in images]
            small = self._crops(images, [box for box, _ in drawn], [flip for _, flip in drawn])
        else:
            small = self._views(images)
        return ModelInputs(len(pairs), pixels=normalise(small, self.how))

    def _views(self, images: Sequence[Image]) -> Tensor:
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, image in enumerate(images):
            groups[image.shape].append(row)
        out = torch.empty(len(images), 3, *self.how.size, dtype=torch.uint8, device=self.device)
        for rows in groups.values():
            out[rows] = view(self._stack([images[row] for row in rows]), self.how)
        return out

    def _crops(self, images: Sequence[Image], boxes: Sequence[Box], flips: Sequence[bool]) -> Tensor:
        crops = []
        for image, (top, left, rows, columns), flip in zip(images, boxes, flips, strict=True):
            cut = self._stack([image[top : top + rows, left : left + columns]])
            crop = resize(cut, self.how.size, self.how.resample)
            crops.append(crop.flip(-1) if flip else crop)
        return torch.cat(crops)

    def _stack(self, images: Sequence[Image]) -> Tensor:
        # Channels stay last in memory: the layout images have, and the fast one for uint8 resizing.
        return torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2)


def _require_image(item: object, row: int) -> None:
    if not isinstance(item, np.ndarray):
        raise DataError(f"input {row} is a {type(item).__name__} but this model reads images; give RGB arrays in uint8")
    if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or 0 in item.shape:
        raise DataError(
            f"image {row} has shape {item.shape} and type {item.dtype}; give RGB arrays (height, width, 3) in uint8"
        )
