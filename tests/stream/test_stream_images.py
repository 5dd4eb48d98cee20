import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stream_files import encoded, png

from contune.errors import DataError
from contune.modality.image import decode_image


def test_rgb_comes_back_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    decoded = decode_image(encoded(Image.fromarray(pixels), "PNG"))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pixels)
    assert decoded.flags.writeable


def test_grey_is_repeated_and_one_bit_becomes_black_and_white() -> None:
    grey = np.array([[0, 100], [200, 255]], dtype=np.uint8)
    decoded = decode_image(encoded(Image.fromarray(grey), "PNG"))
    assert np.array_equal(decoded, np.repeat(grey[:, :, None], 3, axis=2))
    bits = decode_image(encoded(Image.fromarray(grey).convert("1", dither=Image.Dither.NONE), "PNG"))
    assert bits[:, :, 0].tolist() == [[0, 0], [255, 255]]


def test_palette_is_resolved() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([1, 0])
    assert decode_image(encoded(image, "PNG"))[0].tolist() == [[40, 50, 60], [10, 20, 30]]
    assert decode_image(encoded(image, "PNG", transparency=1))[0].tolist() == [[255, 255, 255], [10, 20, 30]]


def test_transparency_is_laid_over_white() -> None:
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    decoded = decode_image(encoded(Image.fromarray(pixels), "PNG"))[0].tolist()
    assert decoded[:2] == [[200, 0, 0], [255, 255, 255]]
    assert all(abs(channel - 127) <= 1 for channel in decoded[2])


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    # A plain convert("RGB") would clip all but the first to 255.
    wide = np.array([[0x0080, 0x1234, 0xFFFF]], dtype=np.uint16)
    assert decode_image(encoded(Image.fromarray(wide), "PNG"))[0, :, 0].tolist() == [0x00, 0x12, 0xFF]


def test_pixels_of_unknown_range_are_refused() -> None:
    with pytest.raises(DataError, match="floating point"):
        decode_image(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))
    with pytest.raises(DataError, match="32 bits"):
        decode_image(encoded(Image.fromarray(np.full((2, 2), 1 << 20, dtype=np.int32)), "TIFF"))


def test_exif_orientation_turns_the_image_upright() -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    decoded = decode_image(encoded(Image.fromarray(pixels), "PNG", exif=exif))
    assert np.array_equal(decoded, np.rot90(pixels, -1))
    assert not np.array_equal(decoded, pixels)


def test_only_plain_formats_are_opened() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "EPS")
    with pytest.raises(DataError, match="none of PNG"):
        decode_image(buffer.getvalue())


@settings(max_examples=60)
@given(place=st.integers(0, 80), value=st.integers(0, 255), cut=st.integers(1, 90))
def test_damaged_bytes_decode_or_fail_with_a_sentence(place: int, value: int, cut: int) -> None:
    data = bytearray(png(0)[:cut])
    if place < len(data):
        data[place] = value
    with contextlib.suppress(DataError):
        assert decode_image(bytes(data)).shape[2] == 3
