"""Deterministic samples of any number and size, each a function of (seed, index): patterns to classify, balls to segment."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from worker.contract.catalogue import SyntheticArgs
from worker.data.noise import bits, normals
from worker.data.split import Array, Indices, Splits

# The high bits of the second key word keep the streams apart; indices stay below 2**40.
_TRAIN, _TEST, _PATTERN = 0, 1 << 60, 1 << 61
# Balls have these shares of the side as radius, and so many noise deviations between the intensities of neighbouring classes.
_SMALLEST, _LARGEST, _CONTRAST = 0.15, 0.35, 2.0


def build(args: SyntheticArgs, seed: int) -> Splits:
    """Return `num_samples` training and `num_test_samples` test samples of the same classes."""
    shape = (args.channels, *(args.image_size,) * args.dimensions)
    kind = Balls if args.task == "segmentation" else Patterns
    return Splits(
        kind(args.num_samples, args.num_classes, shape, seed, _TRAIN), kind(args.num_test_samples, args.num_classes, shape, seed, _TEST)
    )


@dataclass(frozen=True)
class Patterns:
    """One split to classify; labels go round in turn. Holds no sample."""

    num_samples: int
    num_classes: int
    image_shape: tuple[int, ...]
    seed: int
    stream: int

    def batch(self, indices: Indices, epoch: int) -> tuple[Array, Array]:
        """Return images (n, C, *spatial) float32 of about mean 0 and variance 2, and labels (n,) int64. Every epoch is alike."""
        del epoch
        labels = indices % self.num_classes
        images = np.empty((len(indices), *self.image_shape), dtype=np.float32)
        for image, index, label in zip(images, indices, labels, strict=True):
            image[:] = _noise(self.seed, self.stream | int(index), self.image_shape) + _pattern(self.seed, int(label), self.image_shape)
        return images, labels


@dataclass(frozen=True)
class Balls:
    """One split to segment: in every sample one ball of each class but 0, the background; later classes lie on top. Holds no sample."""

    num_samples: int
    num_classes: int
    image_shape: tuple[int, ...]
    seed: int
    stream: int

    def batch(self, indices: Indices, epoch: int) -> tuple[Array, Array]:
        """Return images (n, C, *spatial) float32, twice the class plus noise of variance 1, and labels (n, *spatial) int64."""
        del epoch
        labels = np.zeros((len(indices), *self.image_shape[1:]), dtype=np.int64)
        images = np.empty((len(indices), *self.image_shape), dtype=np.float32)
        for image, label, index in zip(images, labels, indices, strict=True):
            self._draw(label, self.stream | int(index))
            image[:] = _noise(self.seed, self.stream | int(index), self.image_shape) + _CONTRAST * label
        return images, labels

    def _draw(self, label: npt.NDArray[np.int64], key: int) -> None:
        """Set the balls into an empty mask."""
        classes = np.arange(1, self.num_classes)
        # Per class: the radius, then the place in each dimension, all in [0, 1).
        drawn = [bits(self.seed, key, classes, lane) * 2.0**-64 for lane in range(label.ndim + 1)]
        sides = np.array(label.shape)
        axes = np.ogrid[tuple(slice(side) for side in sides)]
        for number, cls in enumerate(classes):
            radius = max(1.0, (_SMALLEST + (_LARGEST - _SMALLEST) * drawn[0][number]) * sides.min())
            centre = [drawn[1 + dim][number] * side for dim, side in enumerate(sides)]
            label[sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True)) <= radius**2] = cls


def _noise(seed: int, key: int, image_shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return normals((seed, key), int(np.prod(image_shape))).reshape(image_shape)


@lru_cache(maxsize=64)
def _pattern(seed: int, label: int, image_shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return the image that all samples of a class share."""
    return _noise(seed, _PATTERN | label, image_shape)
