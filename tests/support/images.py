"""Small data sets of images on disk, each image a function of its number."""

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(number: int, height: int = 12, width: int = 14) -> np.ndarray:
    """An image (H, W, 3) uint8."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_classes(root: Path, counts: dict[str, int]) -> Path:
    """A directory per class, of PNG files, which lose nothing."""
    number = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for place in range(count):
            Image.fromarray(pixels(number)).save(root / name / f"{place:03}.png")
            number += 1
    return root


def truncate(path: Path) -> Path:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path
