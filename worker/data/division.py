"""Which samples are held out for validation. Pure."""

import numpy as np
import numpy.typing as npt

from worker.data.noise import bits


def held_out(labels: npt.NDArray[np.int64], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Mark `fraction` of every class, rounded, but at least one sample of each for either side; a class of one sample is trained on.

    A function of (seed, labels, fraction) alone. Where there are no classes, as with masks, give all samples the same label.

    >>> held_out(np.zeros(10, np.int64), 0.2, 0).sum()
    np.int64(2)
    """
    order = np.argsort(bits(seed, 0, np.arange(len(labels)), 0), kind="stable")
    # The members of each class, in the random order, one class after the other.
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1]
    is_held_out = np.zeros(len(labels), dtype=np.bool_)
    for start, count in zip(np.cumsum(counts) - counts, counts, strict=True):
        is_held_out[by_class[start : start + min(max(1, round(fraction * count)), count - 1)]] = True
    return is_held_out
