"""Image files in directories: one directory per class, or images/ and masks/. Owns the order of files and the names of classes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worker.contract.catalogue import ImageFolderArgs
from worker.data.images import Mode, decode, decode_mask
from worker.data.records import allowed, checked_mask
from worker.data.split import Array
from worker.errors import DataError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
Names = npt.NDArray[np.bytes_]


def build(path: str, args: ImageFolderArgs) -> "ClassFolders | MaskFolders":
    """List the files.

    Raises:
        DataError: there are none, or fewer than two classes, or images without masks.
    """
    root = allowed(Path(path))
    if not root.is_dir():
        raise DataError(f"data.path {path} is no directory; expected one on every node; check the path and the mount")
    return _classes(root, args.mode) if args.num_classes is None else _masks(root, args.mode, args.num_classes)


@dataclass(frozen=True)
class ClassFolders:
    """The class of a sample is the directory that its file lies in, however deep below the root's subdirectory."""

    root: Path
    files: Names
    """Relative to the root. Bytes of fixed width: a million names as Python strings cost each loader process ten times the memory."""
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    """The directories' names, sorted, as far as they are text."""
    mode: Mode

    @property
    def num_classes(self) -> int:
        """Directories."""
        return len(self.class_names)

    @property
    def num_samples(self) -> int:
        """Files."""
        return len(self.files)

    def read(self, index: int) -> tuple[Array, Array]:
        """Return (C, H, W), uint8 or uint16, and ()."""
        return decode(self._path(index), self.mode), self.labels[index]

    def numbered_as(self, names: tuple[str, ...]) -> "ClassFolders":
        """Return the same files with the classes numbered as in another data set, which has all of them."""
        numbers = np.array([names.index(name) for name in self.class_names], dtype=np.int64)
        return replace(self, class_names=names, labels=numbers[self.labels])

    def describe(self, index: int) -> str:
        """Return the path."""
        return str(self._path(index))

    def _path(self, index: int) -> Path:
        return self.root / os.fsdecode(self.files[index])


@dataclass(frozen=True)
class MaskFolders:
    """images/NAME.* with masks/NAME.*."""

    root: Path
    images: Names
    masks: Names
    num_classes: int
    mode: Mode
    labels: None = None

    @property
    def num_samples(self) -> int:
        """Images."""
        return len(self.images)

    def read(self, index: int) -> tuple[Array, Array]:
        """Return (C, H, W) and (H, W)."""
        image = decode(self.root / "images" / os.fsdecode(self.images[index]), self.mode)
        mask = decode_mask(self.root / "masks" / os.fsdecode(self.masks[index]))
        if image.shape[1:] != mask.shape:
            raise ValueError(f"the image is {image.shape[1:]} and its mask {mask.shape}; expected equal sizes")
        return image, checked_mask(mask, self.num_classes)

    def describe(self, index: int) -> str:
        """Return the path of the image."""
        return str(self.root / "images" / os.fsdecode(self.images[index]))


def _classes(root: Path, mode: Mode) -> ClassFolders:
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    listed = [_files(root / name, f"{name}/") for name in names]
    empty = [name for name, files in zip(names, listed, strict=True) if not files]
    if len(names) < 2 or empty:
        raise DataError(
            f"data.path {root} has {len(names)} directories, and no image in {', '.join(empty[:3]) or 'none of them'};"
            f" expected at least two, one per class, with files of {' '.join(ENDINGS)}; use targets: masks for images/ and masks/"
        )
    labels = np.repeat(np.arange(len(names)), [len(files) for files in listed]).astype(np.int64)
    readable = tuple(os.fsencode(name).decode("utf-8", "replace") for name in names)
    return ClassFolders(root, _packed([file for files in listed for file in files]), labels, readable, mode)


def _masks(root: Path, mode: Mode, num_classes: int) -> MaskFolders:
    folders = root / "images", root / "masks"
    images, masks = ({file.rpartition(".")[0]: file for file in (_files(folder) if folder.is_dir() else ())} for folder in folders)
    lonely = sorted(images.keys() ^ masks.keys())
    if not images or lonely:
        raise DataError(
            f"{root} has {len(images)} images and {len(masks)} masks, without their other half: {', '.join(lonely[:3]) or 'none'};"
            " expected images/NAME.* with masks/NAME.* for every name; complete the pairs"
        )
    keys = sorted(images)
    return MaskFolders(root, _packed([images[key] for key in keys]), _packed([masks[key] for key in keys]), num_classes, mode)


def _files(folder: Path, prefix: str = "") -> list[str]:
    """Return the image files below a directory, each after the prefix, sorted; hidden ones and links to directories left out."""
    if folder.is_symlink():
        allowed(folder)
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                found += _files(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(ENDINGS):
                if entry.is_symlink():
                    allowed(Path(entry.path))
                found.append(f"{prefix}{entry.name}")
    return sorted(found)


def _packed(files: Sequence[str]) -> Names:
    return np.array([os.fsencode(file) for file in files], dtype=np.bytes_)
