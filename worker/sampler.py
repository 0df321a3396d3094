"""Which samples each step trains on, and which of them each rank takes. Pure; knows neither torch nor the data.

Global step k of an epoch trains on perm(seed, epoch)[k*B : (k+1)*B], whatever the world size. Ranks take contiguous shares of it.

Legend: N samples of the training set, B global batch size, R ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from worker.errors import DataError

Indices = npt.NDArray[np.int64]


def permutation(seed: int, epoch: int, num_samples: int) -> Indices:
    """Return the order of the samples in an epoch: a function of (seed, epoch, num_samples) alone.

    The samples sorted by random keys, ties by index. The keys are raw Philox output, which numpy guarantees to stay the same over its
    versions, as it does not for `Generator.permutation`. O(N log N) time, 16 N bytes.
    """
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_samples)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def shares(count: int, num_parts: int) -> Sequence[slice]:
    """Split `count` things into contiguous parts whose sizes differ by at most one, the larger first; some may be empty.

    >>> shares(5, 3)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    small, extra = divmod(count, num_parts)
    starts = [part * small + min(part, extra) for part in range(num_parts + 1)]
    return [slice(start, end) for start, end in pairwise(starts)]


@dataclass(frozen=True)
class Plan:
    """The steps of a job, as numbers.

    A last batch of exactly one sample, smaller than the batch size, is left out: a single value per channel has no variance.
    """

    num_samples: int
    batch_size: int
    epochs: int | None
    steps: int | None
    """Exactly one of epochs and steps is given."""

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise DataError(
                f"the training set has {self.num_samples} samples; expected at least {min(2, self.batch_size)} for a batch_size of"
                f" {self.batch_size}; use more data"
            )

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (rest > 1)

    @property
    def samples_per_epoch(self) -> int:
        """Samples trained on in one epoch: all, but for a single last one."""
        return min(self.num_samples, self.steps_per_epoch * self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole job."""
        return self.steps if self.steps is not None else (self.epochs or 0) * self.steps_per_epoch

    def epochs_after(self, step: int) -> float:
        """Return how many epochs are complete after `step` steps, a fraction in mid-epoch."""
        return step / self.steps_per_epoch

    def samples_after(self, step: int) -> int:
        """Return how many samples were trained on in the first `step` steps, over all ranks."""
        epochs, within = divmod(step, self.steps_per_epoch)
        return epochs * self.samples_per_epoch + min(within * self.batch_size, self.samples_per_epoch)

    def is_checkpoint_due(self, step: int, every_epochs: int) -> bool:
        """Return whether a checkpoint belongs after `step` steps: at the end of every n-th epoch, and at the end of the job."""
        return step == self.total_steps or (step > 0 and step % (every_epochs * self.steps_per_epoch) == 0)

    def is_step_due(self, step: int, every_steps: int | None) -> bool:
        """Return whether a checkpoint without validation belongs after `step` steps, in mid-epoch too; None: there are none such."""
        return every_steps is not None and step > 0 and step % every_steps == 0


@dataclass
class Sampler:
    """The indices of every step, for one rank."""

    plan: Plan
    seed: int
    rank: int
    world_size: int
    accumulate: int = 1
    _epoch: int = field(default=-1, init=False)
    _order: Indices = field(default_factory=lambda: np.empty(0, np.int64), init=False)

    def batch(self, step: int) -> Indices:
        """Return the samples of the whole global batch of a step, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.plan.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self.seed, epoch, self.plan.num_samples)
        return self._order[within * self.plan.batch_size : (within + 1) * self.plan.batch_size]

    def micro_batches(self, step: int) -> list[Indices]:
        """Return this rank's share of each micro-batch of a step; a share may be empty, and every rank has equally many.

        The global batch is cut into micro-batches first, and those into shares, so that the samples that are normalized together do not
        depend on the world size. There are fewer than `accumulate` micro-batches where some would have one sample only.
        """
        return self.cut(self.batch(step))

    def cut(self, batch: Indices) -> list[Indices]:
        """Return this rank's share of each micro-batch of anything that is as long as a global batch, and in its order."""
        num_parts = max(1, min(self.accumulate, len(batch) // 2))
        micro_batches = [batch[part] for part in shares(len(batch), num_parts)]
        return [part[shares(len(part), self.world_size)[self.rank]] for part in micro_batches]


def even_batches(num_samples: int, batch_size: int) -> Sequence[slice]:
    """Cut the first samples of a data set into batches of at most `batch_size`, as even as can be, so that none has a single sample.

    >>> even_batches(7, 3)
    [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
    """
    return shares(num_samples, -(-num_samples // batch_size))


def evaluation_batches(num_samples: int, rank: int, world_size: int, batch_size: int) -> Iterator[Indices]:
    """Yield this rank's part of a data set in batches; over all ranks, every sample comes exactly once."""
    share = shares(num_samples, world_size)[rank]
    for start in range(share.start, share.stop, batch_size):
        yield np.arange(start, min(start + batch_size, share.stop), dtype=np.int64)
