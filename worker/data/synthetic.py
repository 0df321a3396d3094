"""Deterministic images of any number and size: a pattern of the class plus noise, each sample a function of (seed, index)."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from worker.contract.catalogue import SyntheticArgs
from worker.data.noise import normals
from worker.data.split import Array, Indices, Splits

# The high bits of the second key word keep the streams apart; indices stay below 2**40.
_TRAIN, _TEST, _PATTERN = 0, 1 << 60, 1 << 61


def build(args: SyntheticArgs, seed: int) -> Splits:
    """Return `num_samples` training and `num_test_samples` test samples of the same classes; labels go round in turn."""
    return Splits(
        Synthetic(args.num_samples, args.num_classes, (args.channels, args.image_size, args.image_size), seed, _TRAIN),
        Synthetic(args.num_test_samples, args.num_classes, (args.channels, args.image_size, args.image_size), seed, _TEST),
    )


@dataclass(frozen=True)
class Synthetic:
    """One split; holds no sample."""

    num_samples: int
    num_classes: int
    image_shape: tuple[int, int, int]
    seed: int
    stream: int

    def batch(self, indices: Indices, epoch: int) -> tuple[Array, Array]:
        """Return images (n, C, H, W) float32 of about mean 0 and variance 2, and labels (n,) int64. Every epoch is alike."""
        del epoch
        labels = indices % self.num_classes
        images = np.empty((len(indices), *self.image_shape), dtype=np.float32)
        for image, index, label in zip(images, indices, labels, strict=True):
            image[:] = self._image(int(index), int(label))
        return images, labels

    def _image(self, index: int, label: int) -> npt.NDArray[np.float32]:
        noise = normals((self.seed, self.stream | index), int(np.prod(self.image_shape)))
        return noise.reshape(self.image_shape) + _pattern(self.seed, label, self.image_shape)


@lru_cache(maxsize=64)
def _pattern(seed: int, label: int, image_shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Return the image that all samples of a class share."""
    return normals((seed, _PATTERN | label), int(np.prod(image_shape))).reshape(image_shape)
