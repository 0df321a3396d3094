"""A split that is generated in whole batches, with the transforms of a spec after it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from worker.data.pipeline import Pipeline
from worker.data.split import Array, Indices, Split, class_names_of


@dataclass(frozen=True)
class Transformed:
    """Another split, sample by sample through a pipeline."""

    split: Split
    pipeline: Pipeline

    @property
    def num_samples(self) -> int:
        """Samples in the split."""
        return self.split.num_samples

    @property
    def num_classes(self) -> int:
        """Classes of the split."""
        return self.split.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of the split, where it has names."""
        return class_names_of(self.split)

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """After the transforms."""
        return self.batch(np.zeros(1, np.int64), 0)[0].shape[1:]

    def batch(self, indices: Indices, epoch: int) -> tuple[Array, Array]:
        """Return images (n, C, *spatial) float32, and labels (n,) or masks (n, *spatial) int64."""
        x, y = self.split.batch(indices, epoch)
        if not len(indices):
            return np.empty((0, *self.image_shape), np.float32), np.empty((0, *self.image_shape[1:]) if y.ndim > 1 else 0, np.int64)
        draws = self.pipeline.draws(indices, epoch).tolist()
        changed = [self.pipeline.apply(image, target if y.ndim > 1 else None, own) for image, target, own in zip(x, y, draws, strict=True)]
        masks = [mask for _, mask in changed if mask is not None]
        return np.stack([image for image, _ in changed]), np.stack(masks) if masks else y
