"""Images as a model's own preprocessor would make them, without torchvision."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_models import save_tiny

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.backbone.reader.images import (
    CROP_AREA,
    ImageReader,
    Preprocessing,
    draw_crops,
    middle,
    normalise,
    read_preprocessing,
    resize,
    resize_float,
    view,
)
from contune.errors import ConfigError, DataError

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
HALF = (0.5, 0.5, 0.5)
VIT = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": list(HALF), "image_std": list(HALF)}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth waves plus noise: both what resizing likes and what it does not."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(rows / (3 + c) + columns / (5 - c)) for c in range(3)]
    noisy = np.stack(waves, axis=-1) + random.normal(0, 30, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def as_tensor(image: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def as_array(images: torch.Tensor) -> np.ndarray[Any, Any]:
    return images[0].permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("given_size, size", [((32, 32), (224, 224)), ((300, 200), (96, 64)), ((50, 70), (32, 32))])
def test_resizing_follows_pillow(resample: Any, given_size: tuple[int, int], size: tuple[int, int]) -> None:
    image = picture(*given_size)
    pillow = np.asarray(Image.fromarray(image).resize(size[::-1], PILLOW[resample])).astype(int)
    results = [resize(as_tensor(image), size, resample)]
    if resample != "nearest":
        results.append(resize_float(as_tensor(image), size, resample))
    for result in results:
        difference = np.abs(as_array(result) - pillow)
        assert difference.max() <= 2
        assert difference.mean() < 0.02
    blurred = np.abs(as_array(torch.nn.functional.interpolate(as_tensor(image), size, mode="nearest")) - pillow)
    assert resample == "nearest" or blurred.mean() > 1


@pytest.mark.parametrize("name", ["vit", "clip-vision"])
@pytest.mark.parametrize("height, width", [(32, 32), (41, 97), (97, 41), (20, 24)])
def test_a_view_equals_the_models_own_processor(tmp_path: Path, name: str, height: int, width: int) -> None:
    from transformers import AutoImageProcessor

    folder = save_tiny(name, tmp_path)
    backbone = Backbone.load(ModelConfig(path=str(folder)))
    image = picture(height, width)
    pixels = backbone.collate([(backbone.prepare([image]), np.arange(1))]).pixels
    own = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=Image.fromarray(image), return_tensors="pt")
    assert pixels is not None
    assert pixels.shape == own["pixel_values"].shape
    levels = (pixels - own["pixel_values"]).abs() * 255 * 0.5
    # Pillow from 13 on may take the rows of a tall image first, which moves single pixels by more than rounding.
    assert levels.max() <= (8 if height > width else 2) + 1e-3
    assert levels.mean() < 0.3


def test_normalise_by_hand() -> None:
    how = read_preprocessing(
        {"size": 2, "image_mean": [0.2, 0.4, 0.6], "image_std": [0.5, 0.25, 0.1], "rescale_factor": 1 / 255}, None, "m"
    )
    values = normalise(torch.tensor([51, 102, 153], dtype=torch.uint8).view(1, 3, 1, 1), how)
    torch.testing.assert_close(values.flatten(), torch.zeros(3), atol=1e-6, rtol=0)
    values = normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), how)
    torch.testing.assert_close(values.flatten(), torch.tensor([1.6, 2.4, 4.0]))


def test_images_of_different_sizes_keep_their_places(tmp_path: Path) -> None:
    backbone = Backbone.load(ModelConfig(path=str(save_tiny("vit", tmp_path))))
    images = [picture(32, 32, 1), picture(50, 40, 2), picture(32, 32, 3), picture(50, 40, 4)]
    prepared = backbone.prepare(images)
    together = backbone.collate([(prepared, np.array([3, 0])), (prepared, np.array([1, 2]))]).pixels
    alone = [backbone.collate([(prepared, np.array([row]))]).pixels for row in (3, 0, 1, 2)]
    assert together is not None
    for row, one in enumerate(alone):
        assert one is not None
        torch.testing.assert_close(together[row], one[0], rtol=0, atol=0)


def test_middle_pads_small_images_with_black() -> None:
    out = middle(torch.full((1, 3, 2, 5), 9, dtype=torch.uint8), (4, 3))
    assert out.shape == (1, 3, 4, 3)
    assert out[0, 0].tolist() == [[0] * 3, [9] * 3, [9] * 3, [0] * 3]


def test_image_size_keeps_the_share_that_the_crop_cuts_away() -> None:
    clip = {"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True, "do_normalize": False}
    how = read_preprocessing(clip, 112, "m")
    assert (how.size, how.shortest_edge) == ((112, 112), 128)
    assert view(torch.zeros(1, 3, 300, 400, dtype=torch.uint8), how).shape == (1, 3, 112, 112)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=6), st.integers(0, 2**31))
def test_crops_lie_inside_their_images(sizes: list[tuple[int, int]], seed: int) -> None:
    boxes, flips = draw_crops(sizes, torch.Generator().manual_seed(seed))
    assert len(boxes) == len(flips) == len(sizes)
    for (height, width), (top, left, rows, columns) in zip(sizes, boxes, strict=True):
        assert 0 < rows <= height
        assert 0 < columns <= width
        assert 0 <= top <= height - rows
        assert 0 <= left <= width - columns


def test_crops_have_the_published_spread() -> None:
    boxes, flips = draw_crops([(400, 400)] * 2000, torch.Generator().manual_seed(0))
    areas = np.array([rows * columns for _, _, rows, columns in boxes]) / 400**2
    assert areas.min() == pytest.approx(CROP_AREA[0], abs=0.01)
    assert areas.max() > 0.9
    ratios = np.array([columns / rows for _, _, rows, columns in boxes])
    assert 0.73 < ratios.min() < 0.78
    assert 1.29 < ratios.max() < 1.36
    assert np.mean(flips) == pytest.approx(0.5, abs=0.04)


def test_augmentation_follows_its_generator() -> None:
    how = Preprocessing(size=(16, 16), shortest_edge=None, resample="bicubic", scale=1 / 255, mean=HALF, std=HALF)
    reader = ImageReader(how, 5, torch.device("cpu"))
    prepared = reader.prepare([picture(32, 32, seed) for seed in range(4)])

    def batch(seed: int, rows: list[int]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        pixels = reader.collate([(prepared, np.array(rows))], augment=generator, pixels=True).pixels
        assert pixels is not None
        return pixels

    assert torch.equal(batch(0, [0, 1, 2, 3]), batch(0, [0, 1, 2, 3]))
    assert not torch.equal(batch(0, [0, 1, 2, 3]), batch(1, [0, 1, 2, 3]))
    # The crop belongs to the place in the batch: changing another row's image leaves it alone.
    assert torch.equal(batch(0, [0, 1, 2, 3])[2], batch(0, [3, 0, 2, 1])[2])


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"resample": 1}, "resample 1"),
        ({"size": {"shortest_edge": 32}}, "resize the shortest edge and crop the middle"),
        ({"do_resize": False}, "does not resize"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "RGB images, 3 channels"),
    ],
)
def test_settings_without_a_counterpart_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_preprocessing(VIT | changes, None, "m")


@pytest.mark.parametrize(
    "image, sentence",
    [
        (np.zeros((4, 4), np.uint8), r"image 1 has shape \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "type float32"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        ("a text", "input 1 is a str but this model reads images"),
    ],
)
def test_inputs_that_are_no_rgb_images_are_named(image: Any, sentence: str) -> None:
    how = read_preprocessing(VIT, None, "m")
    with pytest.raises(DataError, match=sentence):
        ImageReader(how, 17, torch.device("cpu")).prepare([picture(4, 4), image])


def test_image_size_interpolates_positions_and_must_fit_the_patches(tmp_path: Path) -> None:
    for name in ("vit", "deit", "dinov2", "clip-vision"):
        folder = save_tiny(name, tmp_path / name)
        backbone = Backbone.load(ModelConfig(path=str(folder), image_size=48))
        prepared = backbone.prepare([picture(32, 32)])
        states = backbone.encode(backbone.collate([(prepared, np.arange(1))])).states
        assert states.shape[1] - backbone.parts.leading == 36
        assert prepared.lengths.tolist() == [states.shape[1]]
    with pytest.raises(ConfigError, match="multiple, such as 48"):
        Backbone.load(ModelConfig(path=str(tmp_path / "vit"), image_size=45))


def test_a_model_without_preprocessor_is_refused(tmp_path: Path) -> None:
    folder = save_tiny("vit", tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json beside its weights"):
        Backbone.load(ModelConfig(path=str(folder)))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "NoSuchProcessor"}))
    with pytest.raises(ConfigError, match="no image preprocessor that can be loaded"):
        Backbone.load(ModelConfig(path=str(folder)))
