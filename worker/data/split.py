"""What training needs to know of a data set."""

from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

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


@runtime_checkable
class Named(Protocol):
    """What knows its classes by name, too."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """In the order of the classes; None where this one has none after all."""


MAX_NAMES: Final = 10_000
"""Every manifest has the names: of more classes than these they stay out."""


def class_names_of(source: object) -> tuple[str, ...] | None:
    """Return the names of the classes that a data set tells apart, None where it knows none, or too many.

    >>> class_names_of(object()) is None
    True
    """
    names = source.class_names if isinstance(source, Named) else None
    return None if names is None or len(names) > MAX_NAMES else names


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
