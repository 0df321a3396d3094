"""Reading files that are sent: chunk by chunk, whole ones verified on the way. Owns which files were verified a while ago."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final

from service.artifacts import OpenedFile
from service.errors import DamagedError
from worker.storage.storage import Identity

CHUNK_BYTES: Final = 2**20
TRUSTED_S: Final = 86_400.0
"""How long a digest that was found right is believed of a file that has not been written to since."""
SETTLED_S: Final = 2.0
"""How long ago a file must have been written to: two writes within one tick of the file system's clock look like one."""
MAX_TRUSTED: Final = 10_000


class Verified:
    """Files whose digest was found right a while ago and that have not been written to since, by what the storage says of them."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._found: OrderedDict[tuple[Identity, str], float] = OrderedDict()

    def holds(self, opened: OpenedFile) -> bool:
        """Return whether the digest need not be taken again."""
        identity = opened.file.identity()
        return identity is not None and self._found.get((identity, opened.sha256), 0.0) > self._now() - TRUSTED_S

    def add(self, opened: OpenedFile, since: float, identity: Identity | None) -> None:
        """Remember that a file was read and found right.

        Args:
            opened: the file.
            since: when reading began, seconds since the epoch.
            identity: of the file at that time.
        """
        if identity is None or identity.changed_at > since - SETTLED_S or opened.file.identity() != identity:
            return
        self._found[identity, opened.sha256] = since
        self._found.move_to_end((identity, opened.sha256))
        if len(self._found) > MAX_TRUSTED:
            self._found.popitem(last=False)


async def read_verified(opened: OpenedFile, verified: Verified) -> AsyncGenerator[bytes]:
    """Yield a whole file, its digest taken on the way unless that was done a while ago. Does not close it.

    Nothing tells a client of HTTP after the headers that what it got is wrong, but an answer that ends early. So the last chunk is held
    back until the digest of everything is known to be right.

    Raises:
        DamagedError: the file is not what the manifest says, or was written to meanwhile; the connection breaks off, and nobody takes it
            for whole.
    """
    since, identity, is_known = time.time(), opened.file.identity(), verified.holds(opened)
    digest = hashlib.sha256()
    held = b""
    async for chunk in read_chunks(opened, 0, opened.size):
        if held:
            yield held
        if not is_known:
            await asyncio.to_thread(digest.update, chunk)
        held = chunk
    if is_known:
        _require_unwritten(opened, identity)
    if not is_known and digest.hexdigest() != opened.sha256:
        raise DamagedError(f"file {opened.name} has sha256 {digest.hexdigest()}; its manifest says {opened.sha256}; use another checkpoint")
    if not is_known:
        verified.add(opened, since, identity)
    if held:
        yield held


@asynccontextmanager
async def verifying(opened: OpenedFile, verified: Verified) -> AsyncIterator[None]:
    """Have the digest of a whole file taken meanwhile, unless that was done a while ago; wait for it at the end.

    Raises:
        DamagedError: at the end: the file is not what the manifest says, or was written to meanwhile.
    """
    identity = opened.file.identity()
    reading = None if verified.holds(opened) else asyncio.create_task(_read_all(opened, verified))
    try:
        yield
        if reading is not None:
            await reading
        _require_unwritten(opened, identity)
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)  # the file must stay open for it


async def _read_all(opened: OpenedFile, verified: Verified) -> None:
    async with aclosing(read_verified(opened, verified)) as chunks:
        async for _ in chunks:
            pass


def _require_unwritten(opened: OpenedFile, identity: Identity | None) -> None:
    if opened.file.identity() != identity:
        raise DamagedError(f"file {opened.name} was written to while it was read; nobody may do so; use another checkpoint")


async def read_chunks(opened: OpenedFile, start: int, end: int) -> AsyncGenerator[bytes]:
    """Yield the bytes from `start` up to, not including, `end`; the next chunk is read while one is sent. Does not close the file.

    Raises:
        DamagedError: the file became shorter; the connection breaks off and nobody takes the part for the whole.
    """

    def read(position: int) -> "asyncio.Future[bytes]":
        return asyncio.ensure_future(asyncio.to_thread(opened.file.read, position, min(CHUNK_BYTES, end - position)))

    position, coming = start, read(start)
    try:
        while position < end:
            chunk = await coming
            if not chunk:
                raise DamagedError(f"file {opened.name} became shorter while it was read")
            position += len(chunk)
            coming = read(position)
            yield chunk
    finally:
        await asyncio.wait([coming])  # the file must stay open for it
        coming.exception()
