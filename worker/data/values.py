"""Transforms that change the values of pixels: colour, cutout, normalization. Masks stay. Pure.

Legend: an image is (C, *spatial); `draws` are numbers of [0, 1), as many as the transform asks for.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from worker.contract.transforms import Color, Cutout, Normalize
from worker.data.split import Array
from worker.errors import DataError

Draws = Sequence[float]
# ITU-R 601-2 luma, as Pillow has it.
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
MIN_DEVIATION = 1e-6


def floating(image: Array) -> npt.NDArray[np.float32]:
    """Return an image in float32; whole numbers are scaled to [0, 1] by the largest that their type holds."""
    if image.dtype.kind == "u":
        scaled: npt.NDArray[np.float32] = np.multiply(image, np.float32(1 / np.iinfo(image.dtype).max), dtype=np.float32)
        return scaled
    return image.astype(np.float32, copy=False)


def color(spec: Color, image: Array, draws: Draws) -> Array:
    """Change brightness, contrast and saturation of an image in [0, 1], and clip to it. Factors of 1 leave it as it is."""
    brightness, contrast, saturation = (
        np.float32(1 + strength * (2 * draw - 1))
        for strength, draw in zip((spec.brightness, spec.contrast, spec.saturation), draws, strict=True)
    )
    x: Array = np.clip(floating(image) * brightness, 0, 1)
    x = np.clip(x * contrast + (1 - contrast) * _gray(x).mean(), 0, 1)
    if len(x) == 3:
        x = np.clip(x * saturation + (1 - saturation) * _gray(x), 0, 1)
    return x


def cutout(spec: Cutout, image: Array, draws: Draws) -> Array:
    """Set a square, or cube, around a random pixel to 0."""
    if draws[0] >= spec.p:
        return image
    corners = [int(draw * side) - spec.size // 2 for draw, side in zip(draws[1:], image.shape[1:], strict=False)]
    changed = image.copy()
    changed[(slice(None), *(slice(max(0, corner), max(0, corner + spec.size)) for corner in corners))] = 0
    return changed


def normalize(spec: Normalize, image: Array, draws: Draws) -> Array:
    """Subtract the mean and divide by the deviation: the given ones of each channel, or the sample's own over all its values.

    Accuracy: the sample's own are taken in float64.
    """
    del draws
    x = floating(image)
    if spec.per_sample:
        mean, std = x.mean(dtype=np.float64), x.std(dtype=np.float64)
        return (x - np.float32(mean)) / np.float32(max(std, MIN_DEVIATION))
    if len(spec.mean) not in {1, len(x)}:
        raise DataError(
            f"normalize has {len(spec.mean)} means for images of {len(x)} channels; expected 1 or {len(x)}; give one per channel"
        )
    shape = (-1, *(1,) * (x.ndim - 1))
    return (x - np.array(spec.mean, np.float32).reshape(shape)) / np.array(spec.std, np.float32).reshape(shape)


def _gray(x: Array) -> Array:
    """Return the luma of three channels, (1, *spatial), or the mean of any other number."""
    return np.tensordot(LUMA, x, 1)[None] if len(x) == 3 else x.mean(axis=0, keepdims=True)
