"""A split of stored samples: which records, through which transforms. Owns what happens when one cannot be read.

A sample that cannot be read is replaced by another of the split, which is a function of (seed, epoch, sample): every world size trains on
the same one. It is noted in `bad`, and whoever drives the split decides how many are too many (`worker.data.bad`).
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from worker.data.bad import BadSample
from worker.data.noise import bits
from worker.data.pipeline import Pipeline
from worker.data.records import Records
from worker.data.split import Array, Indices, class_names_of
from worker.errors import BadDataError, DataError

SUBSTITUTE_LANE = 16
NUM_SUBSTITUTES = 16
"""Samples tried in place of one that cannot be read. Where all of them are bad too, so is the data set."""


@dataclass(frozen=True)
class StoredSplit:
    """Some of the records, in the order of their numbers."""

    records: Records
    numbers: Indices
    pipeline: Pipeline
    bad: list[BadSample] = field(default_factory=list, compare=False)
    """What could not be read since it was last taken."""

    @property
    def num_samples(self) -> int:
        """Samples in the split."""
        return len(self.numbers)

    @property
    def num_classes(self) -> int:
        """Classes of the whole set."""
        return self.records.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of the whole set, where the format has names."""
        return class_names_of(self.records)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of the first sample after the transforms; all others must be alike."""
        return self._first[0].shape

    def take_bad(self) -> tuple[BadSample, ...]:
        """Return what was noted since the last call."""
        taken = tuple(self.bad)
        del self.bad[: len(taken)]
        return taken

    def batch(self, indices: Indices, epoch: int) -> tuple[Array, Array]:
        """Return images (n, C, *spatial) float32, and labels (n,) or masks (n, *spatial) int64.

        Raises:
            DataError: an image has another size than the first, or does not fit a transform.
            BadDataError: too many samples in a row cannot be read.
        """
        first_image, first_target = self._first
        x = np.empty((len(indices), *first_image.shape), dtype=np.float32)
        y = np.empty((len(indices), *first_target.shape), dtype=np.int64)
        draws = self.pipeline.draws(indices, epoch).tolist()
        for place, index in enumerate(indices.tolist()):
            image, target = self._sample(index, epoch, draws[place])
            if image.shape != first_image.shape or target.shape != first_target.shape:
                name = self.records.describe(self.numbers[index])
                raise DataError(
                    f"{name} is {image.shape} after the transforms, its target {target.shape};"
                    f" expected {first_image.shape} and {first_target.shape}, as the first sample; add a resize or a random_crop to"
                    " data.transforms"
                )
            x[place], y[place] = image, target
        return x, y

    @cached_property
    def _first(self) -> tuple[Array, Array]:
        draws = self.pipeline.draws(np.zeros(1, np.int64), 0).tolist()
        image, target = self._sample(0, 0, draws[0], is_noted=False)
        return image, target

    def _sample(self, index: int, epoch: int, draws: list[float], *, is_noted: bool = True) -> tuple[Array, Array]:
        image, target = self._read(index, epoch, is_noted=is_noted)
        if target.ndim == 0:
            return self.pipeline.apply(image, None, draws)[0], target
        changed, mask = self.pipeline.apply(image, target, draws)
        assert mask is not None
        return changed, mask

    def _read(self, index: int, epoch: int, *, is_noted: bool) -> tuple[Array, Array]:
        """Return a sample as it is stored, or the first of its substitutes that can be read."""
        choice, reason = index, ""
        for attempt in range(NUM_SUBSTITUTES + 1):
            try:
                return self.records.read(self.numbers[choice])
            except (MemoryError, DataError):
                raise
            except Exception as error:  # noqa: BLE001 - decoders raise anything over foreign bytes; it is noted by name
                reason = reason or f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            if attempt == 0 and is_noted:
                self.bad.append(BadSample(self.records.describe(self.numbers[index]), reason))
            random = bits(self.pipeline.seed, epoch, np.array([index]), SUBSTITUTE_LANE + attempt)
            choice = int(random[0] % np.uint64(self.num_samples))
        name = self.records.describe(self.numbers[index])
        raise BadDataError(
            f"{name} cannot be read ({reason}), nor can {NUM_SUBSTITUTES} others in its place; expected readable samples; check them"
        )
