"""Tests of service/reading.py."""

import asyncio
import hashlib
import os
import time

import pytest

from service import reading
from service.artifacts import OpenedFile
from service.errors import DamagedError
from service.reading import CHUNK_BYTES, TRUSTED_S, Verified, read_verified
from worker.storage.local import LocalFile

CONTENT = bytes(range(256)) * (CHUNK_BYTES // 128)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1.0e9

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def path(tmp_path):
    """A file of two chunks."""
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def clock(monkeypatch):
    """What the module takes for the time, and a file that was written long before."""
    clock = Clock()
    monkeypatch.setattr(reading.time, "time", clock)
    monkeypatch.setattr(reading, "SETTLED_S", -1.0e12)
    return clock


def _read(path, verified, after_first=lambda: None) -> bytes:
    async def read() -> bytes:
        descriptor = os.open(path, os.O_RDONLY)
        file = LocalFile(descriptor, len(CONTENT))
        opened = OpenedFile("file.bin", len(CONTENT), hashlib.new("sha256", CONTENT).hexdigest(), file)
        parts = []
        try:
            async for chunk in read_verified(opened, verified):
                if not parts:
                    after_first()
                parts.append(chunk)
        finally:
            file.close()
        return b"".join(parts)

    return asyncio.run(read())


def _flip(path):
    time.sleep(0.02)  # more than a tick of the file system's clock
    with path.open("r+b") as file:
        file.write(bytes([255]))


def test_a_file_is_verified_once_in_a_while(path, clock, digests):
    """The second reader does not wait for the digest; after a while it is taken again."""
    verified = Verified(clock)
    assert _read(path, verified) == CONTENT
    assert sum(digests) == len(CONTENT)
    clock.now += TRUSTED_S - 1
    assert _read(path, verified) == CONTENT
    assert sum(digests) == len(CONTENT)
    clock.now += 2
    assert _read(path, verified) == CONTENT
    assert sum(digests) == 2 * len(CONTENT)


def test_a_file_that_was_written_to_is_verified_again(path, clock):
    """Of the same size and at the same place: it breaks off before its last byte."""
    verified = Verified(clock)
    _read(path, verified)
    _flip(path)
    with pytest.raises(DamagedError, match="has sha256"):
        _read(path, verified)


def test_a_file_that_is_written_to_while_it_is_sent_breaks_off(path, clock):
    """Also where its digest is not taken."""
    verified = Verified(clock)
    _read(path, verified)
    with pytest.raises(DamagedError, match="was written to while it was read"):
        _read(path, verified, after_first=lambda: _flip(path))


def test_a_file_that_was_just_written_is_not_trusted(path, digests):
    """Two writes within one tick of the file system's clock look like one."""
    verified = Verified()
    _read(path, verified)
    _read(path, verified)
    assert sum(digests) == 2 * len(CONTENT)
