"""scikit-learn's 1,797 hand-written digits: split, normalized, optionally shifted. Owns nothing on disk; downloads nothing."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worker.contract.catalogue import DigitsArgs
from worker.data.division import held_out
from worker.data.noise import bits
from worker.data.split import Indices, Splits
from worker.errors import DataError

NUM_CLASSES = 10
SIDE = 8
# Of all pixels, after scaling to [0, 1].
MEAN, STD = 0.3053, 0.3760
# The split is the same for every job, so that jobs with different seeds can be compared on the same test samples.
SPLIT_SEED = 0


def build(args: DigitsArgs, seed: int) -> Splits:
    """Return the digits, `test_fraction` of every class held out."""
    images, labels = _read()
    is_test = held_out(labels, args.test_fraction, SPLIT_SEED)
    return Splits(Digits(images[~is_test], labels[~is_test], seed, args.shift), Digits(images[is_test], labels[is_test], seed, 0))


@dataclass(frozen=True)
class Digits:
    """One split of the digits, held in memory."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    seed: int
    shift: int
    num_classes: int = NUM_CLASSES
    class_names: tuple[str, ...] = tuple(map(str, range(NUM_CLASSES)))
    image_shape: tuple[int, int, int] = (1, SIDE, SIDE)

    @property
    def num_samples(self) -> int:
        """Samples in the split."""
        return len(self.labels)

    def batch(self, indices: Indices, epoch: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return normalized images (n, 1, 8, 8) float32, shifted by up to `shift` pixels each way, and labels (n,)."""
        images = self.images[indices]
        return (self._shifted(images, indices, epoch) if self.shift else images), self.labels[indices]

    def _shifted(self, images: npt.NDArray[np.float32], indices: Indices, epoch: int) -> npt.NDArray[np.float32]:
        """Move every image by its own offset; what comes in from outside is background."""
        margin, span = self.shift, np.uint64(2 * self.shift + 1)
        padded = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)), constant_values=-MEAN / STD)
        rows, columns = ((bits(self.seed, epoch, indices, lane) % span).astype(np.int64)[:, None] + np.arange(SIDE) for lane in (0, 1))
        shifted: npt.NDArray[np.float32] = padded[
            np.arange(len(images))[:, None, None, None], 0, rows[:, None, :, None], columns[:, None, None, :]
        ]
        return shifted


def _read() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Read the file that `sklearn.datasets.load_digits` reads, without the 1.4 s that importing `sklearn.datasets` takes."""
    package = importlib.util.find_spec("sklearn")
    folders = list(package.submodule_search_locations or []) if package else []
    if not folders:
        raise DataError("the digits come with scikit-learn, which is not installed; expected it on every node; pip install scikit-learn")
    table = np.loadtxt(Path(folders[0]) / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.float32)
    pixels = table[:, :-1].reshape(-1, 1, SIDE, SIDE)
    return ((pixels / 16 - MEAN) / STD).astype(np.float32), table[:, -1].astype(np.int64)
