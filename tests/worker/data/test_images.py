"""Tests of worker/data/images.py."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.support.images import pixels, truncate
from worker.data.images import decode, decode_mask


def _encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_colour_and_gray_become_what_is_asked_for():
    """Channels come first; gray is repeated to colour, colour becomes luma."""
    colour, gray = Image.fromarray(pixels(0)), Image.fromarray(pixels(0)[..., 0])

    assert np.array_equal(decode(_encoded(colour), "rgb"), pixels(0).transpose(2, 0, 1))
    assert np.array_equal(decode(_encoded(gray), "rgb"), np.repeat(pixels(0)[None, ..., 0], 3, 0))
    assert np.array_equal(decode(_encoded(gray), "gray"), pixels(0)[None, ..., 0])
    assert np.array_equal(decode(_encoded(colour), "gray")[0], np.asarray(colour.convert("L")))


def test_alpha_is_dropped_and_palettes_are_expanded():
    """Transparency changes no colour; a palette image looks like its colours, also with a transparent one."""
    colour = Image.fromarray(pixels(1))
    with_alpha = colour.copy()
    with_alpha.putalpha(7)
    palette = colour.quantize(16)

    assert np.array_equal(decode(_encoded(with_alpha), "rgb"), pixels(1).transpose(2, 0, 1))
    for options in ({}, {"transparency": b"\x00\x80"}):
        assert np.array_equal(decode(_encoded(palette, **options), "rgb").transpose(1, 2, 0), np.asarray(palette.convert("RGB")))


def test_cmyk_is_converted():
    """Three channels come out of four."""
    assert decode(_encoded(Image.fromarray(pixels(2)).convert("CMYK"), "JPEG"), "rgb").shape == (3, 12, 14)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_values(kind):
    """Pillow's own conversion would clip everything above 255 to white."""
    deep = (np.arange(12 * 14, dtype=np.uint16) * 390).reshape(12, 14)
    decoded = decode(_encoded(Image.fromarray(deep), kind), "rgb")

    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, np.repeat(deep[None], 3, 0))


def test_a_photo_is_turned_as_its_exif_says():
    """Orientation 6: the camera was turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(_encoded(Image.fromarray(pixels(3)), exif=exif.tobytes()), "rgb")

    assert np.array_equal(decoded, np.rot90(pixels(3), -1).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_cut_off_is_refused(tmp_path, kind):
    """It is not filled up with gray; the whole file is read."""
    path = tmp_path / "image"
    path.write_bytes(_encoded(Image.fromarray(pixels(4, 64, 64)), kind))
    assert decode(path, "rgb").shape == (3, 64, 64)

    with pytest.raises(OSError, match=r"truncated|broken"):
        decode(truncate(path), "rgb")


def test_masks_are_the_stored_numbers(tmp_path):
    """Gray values, palette indices, 16 bits; colours are no classes."""
    values = pixels(5)[..., 0] % 5
    indexed = Image.fromarray(values)
    indexed.putpalette([17] * 768)
    for name, image in (("gray", Image.fromarray(values)), ("palette", indexed), ("deep", Image.fromarray(values.astype(np.uint16)))):
        image.save(tmp_path / f"{name}.png")
        assert np.array_equal(decode_mask(tmp_path / f"{name}.png"), values), name
    Image.fromarray(pixels(5)).save(tmp_path / "colour.png")

    with pytest.raises(ValueError, match="mode RGB; expected one channel"):
        decode_mask(tmp_path / "colour.png")
