"""One micro-batch of one rank: what it is made of, and making it. Pure of process and thread: the same wherever it is done."""

from collections.abc import Iterator
from dataclasses import dataclass

from worker.data.bad import BadSample
from worker.data.mixing import Mixing
from worker.data.split import Array, Indices, Split
from worker.data.stored import StoredSplit
from worker.sampler import Sampler


@dataclass(frozen=True)
class Item:
    """What to make: for one part of one step. Small; crosses to a loader process."""

    step: int
    part: int
    epoch: int
    indices: Indices
    partners: Indices | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Assembled:
    """Images (n, C, *spatial) float32; labels (n,) int64, masks (n, *spatial) int64 or mixed labels (n, K) float32; what was unreadable."""

    x: Array
    y: Array
    bad: tuple[BadSample, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """All that one rank needs to make any of its micro-batches. Crosses to loader processes once."""

    split: Split
    mixing: Mixing | None = None

    def make(self, item: Item) -> Assembled:
        """Return the micro-batch of an item: a function of the item alone."""
        x, y = self.split.batch(item.indices, item.epoch)
        bad = taken_bad(self.split)
        if self.mixing is not None and item.partners is not None:
            x, y = self.mixing.mix((x, y), self.split.batch(item.partners, item.epoch), item.share)
            # Partners are samples of the same batch, and are counted where they are samples themselves.
            taken_bad(self.split)
        return Assembled(x, y, bad)


def items(sampler: Sampler, mixing: Mixing | None, first_step: int, total_steps: int) -> Iterator[Item]:
    """Yield this rank's micro-batches in the order in which training asks for them."""
    for step in range(first_step, total_steps):
        epoch, batch = step // sampler.plan.steps_per_epoch, sampler.batch(step)
        shares = sampler.cut(batch)
        partners = sampler.cut(mixing.partners(batch, step)) if mixing else [None] * len(shares)
        share = mixing.share(step) if mixing else 1.0
        for part, (own, other) in enumerate(zip(shares, partners, strict=True)):
            yield Item(step, part, epoch, own, other, share)


def taken_bad(split: Split) -> tuple[BadSample, ...]:
    """Return the samples of a split that could not be read since the last call; only stored ones can be unreadable."""
    return split.take_bad() if isinstance(split, StoredSplit) else ()
