"""Transforms that move pixels: crops, flips, sizes. Each acts on an image and, where there is one, on its mask alike. Pure.

Legend: an image is (C, *spatial), a mask (*spatial); `draws` are numbers of [0, 1), as many as the transform asks for.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from worker.contract.transforms import CenterCrop, Flip, RandomCrop, RandomResizedCrop, Resize
from worker.data.split import IGNORED_LABEL, Array
from worker.data.values import floating
from worker.errors import DataError

Draws = Sequence[float]


def random_crop(spec: RandomCrop, image: Array, mask: Array | None, draws: Draws) -> tuple[Array, Array | None]:
    """Pad, then cut out the window that the draws, one per dimension, choose. What is padded counts nowhere in a mask."""
    if spec.padding:
        width = (spec.padding, spec.padding)
        image = np.pad(image, [(0, 0), *[width] * (image.ndim - 1)])
        mask = None if mask is None else np.pad(mask, [width] * mask.ndim, constant_values=IGNORED_LABEL)
    sides = _sides(spec.size, image)
    corner = [int(draw * (have - want + 1)) for draw, have, want in zip(draws, image.shape[1:], sides, strict=False)]
    return _window(image, mask, corner, sides)


def center_crop(spec: CenterCrop, image: Array, mask: Array | None, draws: Draws) -> tuple[Array, Array | None]:
    """Cut out the central window."""
    del draws
    sides = _sides(spec.size, image)
    return _window(image, mask, [(have - want) // 2 for have, want in zip(image.shape[1:], sides, strict=True)], sides)


def random_resized_crop(spec: RandomResizedCrop, image: Array, mask: Array | None, draws: Draws) -> tuple[Array, Array | None]:
    """Cut out a window of random area and ratio, and resize it.

    Deviation from torchvision: a window that does not fit is made to fit at once, where torchvision draws up to nine times more.
    """
    height, width = _plane(image)
    area = height * width * (spec.scale[0] + draws[0] * (spec.scale[1] - spec.scale[0]))
    low, high = map(math.log, spec.ratio)
    ratio = math.exp(low + draws[1] * (high - low))
    rows = min(height, max(1, round(math.sqrt(area / ratio))))
    columns = min(width, max(1, round(math.sqrt(area * ratio))))
    corner = [int(draws[2] * (height - rows + 1)), int(draws[3] * (width - columns + 1))]
    return _resized(*_window(image, mask, corner, (rows, columns)), (spec.size, spec.size))


def resize(spec: Resize, image: Array, mask: Array | None, draws: Draws) -> tuple[Array, Array | None]:
    """Resize the shorter side, or the whole."""
    del draws
    height, width = _plane(image)
    if isinstance(spec.size, tuple) and len(spec.size) == 2:
        return _resized(image, mask, (spec.size[0], spec.size[1]))
    side = spec.size if isinstance(spec.size, int) else spec.size[0]
    short = min(height, width)
    return _resized(image, mask, (max(1, round(height * side / short)), max(1, round(width * side / short))))


def flip(spec: Flip, image: Array, mask: Array | None, draws: Draws) -> tuple[Array, Array | None]:
    """Mirror the last dimension (horizontal) or the one before (vertical)."""
    if draws[0] >= spec.p:
        return image, mask
    axis = -1 if spec.axis == "horizontal" else -2
    return np.flip(image, axis), None if mask is None else np.flip(mask, axis)


def _sides(size: int | tuple[int, ...], image: Array) -> tuple[int, ...]:
    spatial = image.shape[1:]
    sides = size if isinstance(size, tuple) else (size,) * len(spatial)
    if len(sides) != len(spatial) or any(want > have for want, have in zip(sides, spatial, strict=True)):
        raise DataError(f"an image of {spatial} cannot be cropped to {sides}; expected one at least as large; resize it before, or pad it")
    return sides


def _plane(image: Array) -> tuple[int, int]:
    if image.ndim != 3:
        raise DataError(f"an image of {image.shape} cannot be resized; expected (C, H, W); resize volumes before training")
    return image.shape[1], image.shape[2]


def _window(image: Array, mask: Array | None, corner: Sequence[int], sides: Sequence[int]) -> tuple[Array, Array | None]:
    window = tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))
    return image[(slice(None), *window)], None if mask is None else mask[window]


def _resized(image: Array, mask: Array | None, size: tuple[int, int]) -> tuple[Array, Array | None]:
    """Resize by area-aware bilinear weights (Pillow's), a mask to the nearest pixel."""
    if image.shape[1:] != size:
        shape = size[1], size[0]
        if image.dtype == np.uint8 and len(image) == 3:
            colour = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).resize(shape, Image.Resampling.BILINEAR)
            image = np.asarray(colour).transpose(2, 0, 1)
        else:
            image = np.stack(
                [
                    np.asarray(Image.fromarray(plane).resize(shape, Image.Resampling.BILINEAR))
                    for plane in (image if image.dtype == np.uint8 else floating(image))
                ]
            )
        if mask is not None:
            nearest = Image.fromarray(mask.astype(np.int32)).resize(shape, Image.Resampling.NEAREST)
            mask = np.asarray(nearest).astype(np.int64)
    return image, mask
