"""The transforms that a spec may list. Owns their fields and ranges; `worker.data` performs them.

Random ones draw by (seed, epoch, sample, place in the list) and act in training only.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, model_validator

from worker.contract.frozen import Frozen
from worker.contract.rules import refuse

MAX_SIDE = 8192
Side = Annotated[StrictInt, Field(ge=1, le=MAX_SIDE)]
Strength = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


def _sides(size: Any) -> Any:
    """Refuse in one sentence what is no size; a union of types would complain twice."""
    sides = size if isinstance(size, list | tuple) else [size]
    if not 1 <= len(sides) <= 3 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise refuse("is no size", f"one number, or one per dimension, each of 1 to {MAX_SIDE} pixels", "write it like 224 or [224, 320]")
    return size


Size = Annotated[int | tuple[int, ...], BeforeValidator(_sides)]


class RandomCrop(Frozen):
    """Cut out a window at a random place. Outside of training: the central window of that size."""

    name: Literal["random_crop"]
    size: Size
    padding: Annotated[StrictInt, Field(ge=0, le=MAX_SIDE)] = 0
    """Pixels of 0 added on every side before, which a mask marks as ignored (255). In training only."""


class RandomResizedCrop(Frozen):
    """Cut out a window of random area and ratio and resize it. Outside of training: shorter side to size / 0.875, then the centre."""

    name: Literal["random_resized_crop"]
    size: Side
    scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.08, 1.0)
    """Range of the window's area, as a share of the image's."""
    ratio: tuple[Annotated[float, Field(ge=0.1, le=10)], Annotated[float, Field(ge=0.1, le=10)]] = (0.75, 4 / 3)
    """Range of width to height."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        if self.scale[0] > self.scale[1] or self.ratio[0] > self.ratio[1]:
            raise refuse("a range falls", "scale and ratio with the smaller number first", "swap the two numbers")
        return self


class CenterCrop(Frozen):
    """Cut out the central window."""

    name: Literal["center_crop"]
    size: Size


class Resize(Frozen):
    """Resize an image of two dimensions: one number is the shorter side, [height, width] is the whole. A mask takes the nearest pixel."""

    name: Literal["resize"]
    size: Size


class Flip(Frozen):
    """Mirror left and right (horizontal) or top and bottom (vertical), with probability p."""

    name: Literal["flip"]
    axis: Literal["horizontal", "vertical"] = "horizontal"
    p: Probability = 0.5


class Normalize(Frozen):
    """Subtract the mean of each channel and divide by its deviation; with `per_sample` by those of the sample over all its channels."""

    name: Literal["normalize"]
    mean: tuple[float, ...] = ()
    std: tuple[Annotated[float, Field(gt=0)], ...] = ()
    per_sample: StrictBool = False

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if bool(self.mean or self.std) == self.per_sample or len(self.mean) != len(self.std):
            raise refuse(
                "says neither or both", "mean and std of equal length, or per_sample: true", "write {mean: [0.5], std: [0.25]} per channel"
            )
        return self


class Color(Frozen):
    """Change brightness, contrast and saturation, in this order, each by a random factor of 1 - strength to 1 + strength."""

    name: Literal["color"]
    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    """Of images of three channels; others stay."""


class Cutout(Frozen):
    """Set a square of `size` pixels at a random place to 0, as far as it lies inside. A mask stays."""

    name: Literal["cutout"]
    size: Side
    p: Probability = 1.0


class Mixup(Frozen):
    """Mix every sample of a global batch, and its label, with another one of it, by a share drawn from Beta(alpha, alpha) per step."""

    name: Literal["mixup"]
    alpha: Annotated[float, Field(gt=0, le=4)] = 0.2


Transform = Annotated[
    RandomCrop | RandomResizedCrop | CenterCrop | Resize | Flip | Normalize | Color | Cutout | Mixup, Field(discriminator="name")
]
TRANSFORM_NAMES = frozenset(
    {"random_crop", "random_resized_crop", "center_crop", "resize", "flip", "normalize", "color", "cutout", "mixup"}
)
