"""Encoded images to arrays, by Pillow. Owns what becomes of colours, alpha, palettes, depths and EXIF."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from worker.data.split import Array

Mode = Literal["rgb", "gray"]
# What Pillow opens 16-bit files as. Its own conversion of them to 8 bits clips instead of scaling.
_DEEP_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N", "F"}


def decode(source: Path | bytes, mode: Mode) -> Array:
    """Return an image as (C, H, W): uint8, or uint16 where the file has 16 bits of gray; turned as its EXIF says.

    rgb: gray is repeated, palettes are expanded, CMYK is converted. gray: by ITU-R 601-2 luma. Alpha is dropped in both.

    Raises:
        Exception: of many kinds, when the file is no image or is cut off.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in _DEEP_MODES:
            return _deep(np.asarray(image), mode)
        if image.mode == "P":
            # Through RGBA: a palette may carry transparency, about which Pillow warns when it is dropped at once.
            image = image.convert("RGBA")
        array = np.asarray(image.convert("RGB" if mode == "rgb" else "L"))
    return array[None] if mode == "gray" else array.transpose(2, 0, 1)


def decode_mask(source: Path) -> Array:
    """Return a mask as (H, W) int64: the stored numbers, palette indices where there is a palette; turned as its EXIF says."""
    with Image.open(source) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode not in {"1", "L", "P", *_DEEP_MODES - {"F"}}:
            raise ValueError(f"the mask has the mode {image.mode}; expected one channel of whole numbers or a palette")
        return np.asarray(image).astype(np.int64)


def _deep(array: Array, mode: Mode) -> Array:
    if array.dtype.kind != "f":
        # Pillow hands some 16-bit files out as 32 bits; the numbers are those of the file.
        if array.min() < 0 or array.max() > np.iinfo(np.uint16).max:
            raise ValueError(f"the image has values of {array.min()} to {array.max()}; expected 8 or 16 bits per channel")
        array = array.astype(np.uint16)
    return np.repeat(array[None], 3 if mode == "rgb" else 1, axis=0)
