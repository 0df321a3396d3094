"""Random numbers by address instead of by turn: each a function of its key, whatever was drawn before and on whichever rank.

Owns the streams. Raw Philox and splitmix64, which stay the same over versions of numpy.
"""

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def bits(seed: int, epoch: int, indices: npt.NDArray[np.int64], lane: int) -> npt.NDArray[np.uint64]:
    """Return 64 random bits per index, a function of (seed, epoch, index, lane). Source: splitmix64, Steele et al. 2014."""
    key = np.full(1, seed, dtype=np.uint64)
    for part in (epoch, lane):
        key = _mix(key ^ np.uint64(part))
    return _mix(key ^ indices.astype(np.uint64))


def uniforms(seed: int, epoch: int, indices: npt.NDArray[np.int64], lane: int) -> npt.NDArray[np.float64]:
    """Return one number of [0, 1) per index, a function of (seed, epoch, index, lane): the upper 53 of its bits."""
    return (bits(seed, epoch, indices, lane) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(key: tuple[int, int], count: int) -> npt.NDArray[np.float32]:
    """Return `count` normal numbers of mean 0 and variance 1, a function of the key of two words (Box-Muller over raw Philox)."""
    num_pairs = (count + 1) // 2
    raw = np.random.Philox(key=np.array(key, dtype=np.uint64)).random_raw(num_pairs)
    # The upper and lower halves of each word; plus one half, so that the logarithm never sees zero.
    radius = np.sqrt(-2 * np.log(((raw >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32))
    angle = (raw & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2 * np.pi * 2.0**-32)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].astype(np.float32)


def _mix(word: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    word = word + _GOLDEN
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
