"""Samples as they are stored: what a format must offer, and which files a path means. Owns no format."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from worker.data.split import IGNORED_LABEL, Array
from worker.errors import DataError
from worker.settings import read_settings


class Records(Protocol):
    """Samples in the order of their files. Reading is thread-safe; pickles without the samples."""

    @property
    def num_samples(self) -> int:
        """Samples in all files."""

    @property
    def num_classes(self) -> int:
        """Classes, numbered from 0."""

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """The class of every sample; None where targets are masks."""

    def read(self, index: int) -> tuple[Array, Array]:
        """Return an image (C, *spatial), uint8, uint16 or floating, and its label () or mask (*spatial), of whole numbers.

        Raises:
            Exception: of any kind, when the bytes are not what they should be.
        """

    def describe(self, index: int) -> str:
        """Name a sample for a person: its file, and the place in it."""


@runtime_checkable
class Numbered(Protocol):
    """Records whose classes have names, and got their numbers by them."""

    class_names: tuple[str, ...]

    def numbered_as(self, names: tuple[str, ...]) -> Records:
        """Return the same records with the classes numbered as in another data set, which has all of them."""


def files_of(path: str, endings: Sequence[str]) -> list[Path]:
    """Return the file at a path, or those with one of the endings in the directory, or those that match a pattern; in order of names.

    Raises:
        DataError: there is none, or the path lies outside of what this worker may read.
    """
    place = Path(path)
    if any(sign in place.name for sign in "*?["):
        found = sorted(allowed(place.parent).glob(place.name))
    elif allowed(place).is_dir():
        found = sorted(file for file in place.iterdir() if file.name.endswith(tuple(endings)))
    else:
        found = [place] if place.is_file() else []
    if not found:
        raise DataError(f"data.path {path} has no file; expected {' or '.join(endings)} there, on every node; check the path and the mount")
    return [allowed(file) for file in found]


def allowed(path: Path) -> Path:
    """Return the path if it lies under one of SYNCBN_DATA_ROOTS, symbolic links followed, or if none is set.

    Raises:
        DataError: it does not.
    """
    roots = read_settings().data_roots
    real = path.resolve()
    # What is copied to this node was allowed when it was copied; nobody comes to it by a path (`worker.data.mirror`).
    places = [Path(root).resolve() for root in roots if root.startswith("/")] + [copies()]
    if roots and not any(real.is_relative_to(place) for place in places):
        raise DataError(
            f"data.path {path} may not be read; expected a path under {' or '.join(roots)}; move the data or extend SYNCBN_DATA_ROOTS"
        )
    return path


def copies() -> Path:
    """Return the directory of this node's copies of data from object stores."""
    chosen = read_settings().data_cache
    return (Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"syncbn-data-{os.getuid()}").resolve()


def checked_mask(mask: Array, num_classes: int) -> Array:
    """Return a mask whose values are classes or IGNORED_LABEL.

    Raises:
        ValueError: naming a value that is neither.
    """
    is_wrong = (mask < 0) | ((mask >= num_classes) & (mask != IGNORED_LABEL))
    if is_wrong.any():
        raise ValueError(f"the mask has the value {int(mask[is_wrong][0])}; expected 0 to {num_classes - 1}, or {IGNORED_LABEL} to ignore")
    return mask
