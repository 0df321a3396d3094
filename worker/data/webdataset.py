"""Samples in tar shards, by the naming of WebDataset. Owns the index: read from the tar headers once, then any sample is one seek away.

The order of a shard is not the order of training: samples are drawn like those of any other data set.
"""

import tarfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worker.contract.catalogue import WebDatasetArgs
from worker.data.images import Mode, decode
from worker.data.records import files_of
from worker.data.split import Array
from worker.errors import DataError

ENDINGS = (".tar",)
MAX_LABEL_BYTES = 32


def build(path: str, args: WebDatasetArgs) -> "Shards":
    """Read the headers and the labels of all shards.

    Raises:
        DataError: a file is no uncompressed tar, or a sample has no label or no image.
    """
    files = tuple(files_of(path, ENDINGS))
    places: list[tuple[int, int]] = []
    labels: list[int] = []
    starts = [0]
    for file in files:
        for offset, size, label in _samples(file, args):
            places.append((offset, size))
            labels.append(label)
        starts.append(len(labels))
    if not labels or min(labels) < 0:
        raise DataError(f"data.path {path} has {len(labels)} samples, with labels from {min(labels, default=0)}; expected some, from 0")
    return Shards(files, np.array(starts), np.array(places), np.array(labels, dtype=np.int64), max(labels) + 1, args.mode)


@dataclass(frozen=True)
class Shards:
    """All shards one after the other."""

    files: tuple[Path, ...]
    starts: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    """Offset and size of each image in its shard."""
    labels: npt.NDArray[np.int64]
    num_classes: int
    mode: Mode

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return len(self.labels)

    def read(self, index: int) -> tuple[Array, Array]:
        """Return the image and its label."""
        offset, size = map(int, self.places[index])
        with self._file(index).open("rb") as shard:
            shard.seek(offset)
            return decode(shard.read(size), self.mode), self.labels[index]

    def describe(self, index: int) -> str:
        """Return the shard and the offset of the image in it."""
        return f"{self._file(index)} at byte {self.places[index][0]}"

    def _file(self, index: int) -> Path:
        return self.files[bisect_right(self.starts, index) - 1]


def _samples(file: Path, args: WebDatasetArgs) -> Iterator[tuple[int, int, int]]:
    """Yield offset and size of the image, and the label, of each sample of a shard."""
    try:
        with tarfile.open(file, "r:") as shard:
            samples: dict[str, dict[str, tarfile.TarInfo]] = {}
            for member in shard:
                folder, _, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                if member.isfile() and key:
                    samples.setdefault(f"{folder}/{key}", {})[ending.lower()] = member
            for key, parts in samples.items():
                image = next((parts[ending] for ending in args.image if ending in parts), None)
                label = parts.get(args.label)
                if image is None or label is None:
                    raise DataError(
                        f"sample {key.strip('/')} in {file} has {', '.join(sorted(parts))}; expected one of {', '.join(args.image)} and"
                        f" {args.label}; name the endings in data.args.image and data.args.label"
                    )
                yield image.offset_data, image.size, _label(file, shard, label)
    except tarfile.TarError as error:
        raise DataError(f"{file} is no uncompressed tar file: {error}; expected one; unpack .tar.gz with gunzip") from error


def _label(file: Path, shard: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    opened = shard.extractfile(member)
    text = opened.read(MAX_LABEL_BYTES).decode("ascii", "replace").strip() if opened else ""
    if not text.isdecimal():
        raise DataError(f"{member.name} in {file} holds {text!r}; expected the number of a class, from 0; number the classes")
    return int(text)
