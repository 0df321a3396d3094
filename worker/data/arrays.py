"""Samples and targets as arrays in .npz or .safetensors files. Owns what the arrays must be."""

from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.contract.catalogue import ArraysArgs
from worker.data.array_files import ENDINGS, open_arrays
from worker.data.records import checked_mask, files_of
from worker.data.split import Array
from worker.errors import DataError


def build(path: str, args: ArraysArgs) -> "Arrays":
    """Open the files and check what can be checked without reading every sample.

    Raises:
        DataError: an array is missing, or its shape, type or length is wrong.
    """
    files = tuple(files_of(path, ENDINGS))
    first: tuple[tuple[int, ...], np.dtype[Any]] | None = None
    counts, labels = [], []
    for file in files:
        x, y = _pair(file, args)
        _require_pair(file, x, y, args)
        if first is not None and (x.shape[1:], x.dtype) != first:
            raise DataError(
                f"x in {file} is {x.dtype} {x.shape[1:]}; expected {first[1]} {first[0]} as in {files[0]}; make all files alike"
            )
        first = x.shape[1:], x.dtype
        counts.append(len(x))
        labels.append(np.asarray(y, dtype=np.int64) if y.ndim == 1 else None)
    known = [label for label in labels if label is not None]
    if known and len(known) < len(files):
        raise DataError(f"some files of data.path {path} have labels and some masks; expected one kind; use two jobs")
    joined = np.concatenate(known) if known else None
    return Arrays(files, np.cumsum([0, *counts]), args, joined, _num_classes(path, args, joined))


@dataclass(frozen=True)
class Arrays:
    """The files one after the other."""

    files: tuple[Path, ...]
    starts: npt.NDArray[np.int64]
    """Of each file's samples, and the end of the last."""
    args: ArraysArgs
    labels: npt.NDArray[np.int64] | None
    num_classes: int
    _open: dict[int, tuple[Array, Array]] = field(default_factory=dict, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files behind: another process opens them itself."""
        return self.__dict__ | {"_open": {}}

    @property
    def num_samples(self) -> int:
        """Samples in all files."""
        return int(self.starts[-1])

    def read(self, index: int) -> tuple[Array, Array]:
        """Return the sample with its channels first, and its label or mask."""
        number, place = self._locate(index)
        if number not in self._open:
            self._open[number] = _pair(self.files[number], self.args)
        x, y = self._open[number]
        image = x[place]
        if self.args.channels == "last":
            image = np.moveaxis(image, -1, 0)
        elif self.args.channels == "none":
            image = image[None]
        target = y[place].astype(np.int64)
        return image, target if self.labels is not None else checked_mask(target, self.num_classes)

    def describe(self, index: int) -> str:
        """Return the file and the place in its arrays."""
        number, place = self._locate(index)
        return f"{self.files[number]}[{place}]"

    def _locate(self, index: int) -> tuple[int, int]:
        number = bisect_right(self.starts, index) - 1
        return number, int(index - self.starts[number])


def _num_classes(path: str, args: ArraysArgs, labels: npt.NDArray[np.int64] | None) -> int:
    if labels is None:
        if args.num_classes is None:
            raise DataError(f"y of data.path {path} holds masks; expected data.args.num_classes beside them; add it")
        return args.num_classes
    smallest, largest = int(labels.min()), int(labels.max())
    num_classes = args.num_classes or largest + 1
    if smallest < 0 or largest >= num_classes or num_classes < 2:
        raise DataError(
            f"the labels of data.path {path} go from {smallest} to {largest}; expected 0 to {max(1, num_classes - 1)}; number the classes"
            " from 0"
        )
    return num_classes


def _require_pair(file: Path, x: Array, y: Array, args: ArraysArgs) -> None:
    num_channel_dims = 0 if args.channels == "none" else 1
    num_spatial = x.ndim - 1 - num_channel_dims
    if num_spatial < 0 or (x.dtype not in (np.uint8, np.uint16) and x.dtype.kind != "f"):
        raise DataError(
            f"{args.x} in {file} is {x.dtype} {x.shape}; expected (N, C, *spatial) of uint8, uint16 or floating numbers; see"
            " data.args.channels"
        )
    spatial = {"first": x.shape[2:], "last": x.shape[1:-1], "none": x.shape[1:]}[args.channels]
    if y.dtype.kind not in "iu" or y.shape not in ((len(x),), (len(x), *spatial)) or not len(x):
        raise DataError(
            f"{args.y} in {file} is {y.dtype} {y.shape} beside {args.x} of {x.shape}; expected whole numbers, at least one, as labels"
            f" ({len(x)},) or masks {(len(x), *spatial)}; save them so"
        )


def _pair(file: Path, args: ArraysArgs) -> tuple[Array, Array]:
    held = open_arrays(file)
    missing = [name for name in (args.x, args.y) if name not in held]
    if missing:
        raise DataError(
            f"{file} has no array {' and no '.join(missing)}; expected {args.x} and {args.y} among {', '.join(held) or 'none'};"
            " name them in data.args.x and data.args.y"
        )
    return held[args.x], held[args.y]
