"""What training needs to know of a data set."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

IGNORED_LABEL = 255
"""In masks: pixels of no class, by the convention of Pascal VOC and Cityscapes."""


class Inputs(Protocol):
    """What a model takes and tells apart."""

    @property
    def num_classes(self) -> int:
        """Classes, numbered from 0."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, then the size in each dimension."""


class Split(Inputs, Protocol):
    """Samples that can be fetched by index, in any order, by any rank. Pickles small: loader processes get a copy."""

    @property
    def num_samples(self) -> int:
        """Samples in the split."""

    def batch(self, indices: Indices, epoch: int) -> tuple[Array, Array]:
        """Return images (n, C, *spatial) float32, and labels (n,) or masks (n, *spatial) int64; n may be 0.

        Augmentation depends on (seed, epoch, index) and never on the rank or on the other samples.
        """


@dataclass(frozen=True)
class Splits:
    """A data set: what is trained on and what is held out. Samples of `test` are never augmented."""

    train: Split
    test: Split
