"""The beginning of a file on disk, growing at its end, with the digest of what is in it so far.

Owns NAME.part and its lock; knows no network. Every byte is hashed as it is written, and bytes of an earlier run once, on opening.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from service.client.errors import DownloadError

CHUNK_BYTES = 1 << 20


class Part:
    """A locked, growing file. Use as a context manager; whatever happens, the bytes stay for a later run unless discarded."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self.path = target.with_name(f"{target.name}.part")
        self._stream = self.path.open("a+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._stream.close()
            raise DownloadError(f"{self.path} is being written by another download; wait for it or choose another directory") from error
        self._digest = hashlib.sha256()
        self.size = 0
        self._stream.seek(0)
        while chunk := self._stream.read(CHUNK_BYTES):
            self._digest.update(chunk)
            self.size += len(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    @property
    def sha256(self) -> str:
        """The digest of the bytes so far."""
        return self._digest.hexdigest()

    def append(self, chunk: bytes) -> None:
        """Write and hash one more chunk."""
        self._stream.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        """Forget every byte."""
        self._stream.truncate(0)
        self._digest = hashlib.sha256()
        self.size = 0

    def discard(self) -> None:
        """Delete the file."""
        with suppress(FileNotFoundError):
            self.path.unlink()

    def publish(self) -> None:
        """Make the bytes durable and give them their name."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.path.replace(self._target)
        sync_directory(self._target.parent)


def digests(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the bytes of a file read so far and their digest, chunk by chunk; the last digest is the file's."""
    digest, size = hashlib.sha256(), 0
    yield size, digest.hexdigest()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            yield size, digest.hexdigest()


def sync_directory(directory: Path) -> None:
    """Make a rename in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
