"""Memory that a rank and a loader process both map. Owns its growth and the layout of arrays in it.

It has no name: nothing is left in /dev/shm, nor counted against its size, however the processes end. It grows when an array needs it.
"""

import mmap
import os
import tempfile
from collections.abc import Sequence

import numpy as np

from worker.data.split import Array

_ALIGNMENT = 64
Layout = tuple[tuple[str, tuple[int, ...], int], ...]
"""Of each array: its type, its shape, and where it begins, in bytes."""


class SharedMemory:
    """One end. Only one process may write at a time, and the other must then be done reading."""

    def __init__(self, fd: int | None = None) -> None:
        """Create memory, or map that of a descriptor."""
        self.fd = _anonymous_file() if fd is None else fd
        self._map: mmap.mmap | None = None

    def write(self, arrays: Sequence[Array]) -> Layout:
        """Copy arrays into the memory; return where they are."""
        layout, end = [], 0
        for array in arrays:
            layout.append((array.dtype.str, array.shape, end))
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if end > os.fstat(self.fd).st_size:
            os.ftruncate(self.fd, end)
        for array, view in zip(arrays, self.views(tuple(layout)), strict=True):
            np.copyto(view, array)
        return tuple(layout)

    def views(self, layout: Layout) -> list[Array]:
        """Return the arrays at these places, not copied: they change with the memory."""
        size = os.fstat(self.fd).st_size
        if self._map is None or len(self._map) < size:
            # The old map is unmapped when the last array that looks into it is gone.
            self._map = mmap.mmap(self.fd, size) if size else None
        return [self._view(*entry) for entry in layout]

    def close(self) -> None:
        """Give the memory back, once no array looks into it. A second call does nothing."""
        self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _view(self, dtype: str, shape: tuple[int, ...], offset: int) -> Array:
        count = int(np.prod(shape))
        if self._map is None or not count:
            return np.empty(shape, dtype)
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("syncbn-batch", os.MFD_CLOEXEC)
    # Systems other than Linux: a file that is gone from its directory at once.
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
