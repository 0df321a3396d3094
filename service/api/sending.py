"""Answers that consist of files, one after the other, or of a range of them: verified, and copied by the kernel where it may.

Which files need not be verified again is `service.reading`'s to say; how the kernel is asked, the server's (ASGI's extension
`http.response.zerocopysend`; without it everything is read and sent chunk by chunk).
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, nullcontext
from typing import Final, NamedTuple

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from service.api.ranges import Slice
from service.artifacts import OpenedFile, close_all
from service.errors import DamagedError
from service.reading import Verified, read_chunks, read_verified, verifying

ZERO_COPY: Final = "http.response.zerocopysend"
TAIL_BYTES: Final = 2**16
"""So much of the end is always read, and held back until the whole is known to be right."""


class Range(NamedTuple):
    """Bytes of a file that the server may have the kernel send: neither we nor it look at them."""

    part: OpenedFile
    start: int
    end: int


class FilesResponse(StreamingResponse):
    """A slice of files laid end to end; they are closed with it. A file that is sent whole is verified before its last bytes go out."""

    def __init__(self, parts: Sequence[OpenedFile], chosen: Slice, verified: Verified, headers: Mapping[str, str]) -> None:
        super().__init__(iter(()), chosen.status, headers)
        self._parts = parts
        self._chosen = chosen
        self._verified = verified
        self._has_zero_copy = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        self._has_zero_copy = ZERO_COPY in scope.get("extensions", {})
        try:
            await super().__call__(scope, receive, send)
        finally:
            close_all(self._parts)

    async def stream_response(self, send: Send) -> None:
        """Send head and body.

        Raises:
            DamagedError: a file is not what its manifest says: the connection breaks off, and nobody takes what came for the whole.
        """
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                try:
                    await send(_message(piece))
                except EOFError as error:
                    raise DamagedError(f"a file became shorter while it was sent: {error}") from error
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pieces(self) -> AsyncGenerator[bytes | Range]:
        position = 0
        for part in self._parts:
            start, end = max(self._chosen.start - position, 0), min(self._chosen.end - position, part.size)
            position += part.size
            if start < end:
                async with aclosing(self._pieces_of(part, start, end)) as pieces:
                    async for piece in pieces:
                        yield piece

    async def _pieces_of(self, part: OpenedFile, start: int, end: int) -> AsyncGenerator[bytes | Range]:
        is_whole = (start, end) == (0, part.size)
        if not self._has_zero_copy or part.file.fileno() is None or end - start <= TAIL_BYTES:
            async with aclosing(read_verified(part, self._verified) if is_whole else read_chunks(part, start, end)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        async with verifying(part, self._verified) if is_whole else nullcontext():
            yield Range(part, start, end - TAIL_BYTES)
            tail = await asyncio.to_thread(part.file.read, end - TAIL_BYTES, TAIL_BYTES)
        yield tail


def _message(piece: bytes | Range) -> Message:
    if isinstance(piece, bytes):
        return {"type": "http.response.body", "body": piece, "more_body": True}
    return {"type": ZERO_COPY, "file": piece.part.file, "offset": piece.start, "count": piece.end - piece.start, "more_body": True}
