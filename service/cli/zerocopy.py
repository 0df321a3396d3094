"""Files that the kernel sends (sendfile), which uvicorn does not do: ASGI's extension `http.response.zerocopysend`.

Owns sockets and threads. Which bytes of which file go out without being looked at is the application's to say.
"""

import asyncio
import os
import select
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

EXTENSION: Final = "http.response.zerocopysend"
STALL_S: Final = 60.0
"""A reader that takes not one byte for so long is dropped."""
NUM_THREADS: Final = 4
CALL_BYTES: Final = 2**22
BURST_BYTES: Final = 2**26
"""A thread turns to the next reader after so many."""
LINGER_MS: Final = 20
"""Longest time for which a thread waits for a reader that has taken nothing; afterwards the loop does, which costs no thread."""

_threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="sendfile")


class ZeroCopyProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the extension, wherever there is no TLS. An answer that uses it must have a Content-Length."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._application, self.app = self.app, self._serve

    def on_message_begin(self) -> None:
        """Offer the extension."""
        super().on_message_begin()
        if self.scheme == "http":
            self.scope["extensions"] = {EXTENSION: {}}

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        cycle = cast("RequestResponseCycle", send.__self__)

        async def send_either(message: Any) -> None:
            await (self._send_file(cycle, message) if message["type"] == EXTENSION else send(message))

        await self._application(scope, receive, send_either)

    async def _send_file(self, cycle: RequestResponseCycle, message: dict[str, Any]) -> None:
        count: int = message["count"]
        if not cycle.response_started or cycle.chunked_encoding or count > cycle.expected_content_length:
            raise RuntimeError(f"{count} bytes of a file cannot be sent now; expected as many as Content-Length leaves, after the headers")
        try:
            await self._flush()
            if cycle.disconnected or self.transport.is_closing():
                return
            await send_range(self.transport.get_extra_info("socket").fileno(), message["file"].fileno(), message["offset"], count)
        except (ConnectionError, TimeoutError):
            # As uvicorn has it: a client that is gone is no error of the application, which is told by its `receive`.
            cycle.disconnected = True
            self.transport.abort()
            return
        cycle.expected_content_length -= count
        if not message.get("more_body", False):
            await cycle.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _flush(self) -> None:
        """Wait until everything before is with the kernel: what it sends by itself would overtake it."""
        self.transport.set_write_buffer_limits(high=0)
        try:
            async with asyncio.timeout(STALL_S):
                while self.transport.get_write_buffer_size():
                    await self.flow.drain()
        finally:
            self.transport.set_write_buffer_limits()


async def send_range(connection: int, file: int, offset: int, count: int) -> None:
    """Send `count` bytes of a file from `offset` on over a non-blocking socket. When cancelled, no thread uses either any more.

    Raises:
        EOFError: the file ends before.
        ConnectionError: the reader is gone.
        TimeoutError: it took nothing for STALL_S.
    """
    # Our own name for the socket: the number of one that is closed meanwhile may be another connection's the next moment.
    own = os.dup(connection)
    try:
        position, end = offset, offset + count
        while position < end:
            until = min(position + BURST_BYTES, end)
            position = await _in_thread(own, file, position, until)
            if position < until:
                await _writable(own)
    finally:
        os.close(own)


async def _in_thread(connection: int, file: int, start: int, end: int) -> int:
    is_over = threading.Event()
    burst = asyncio.get_running_loop().run_in_executor(_threads, _burst, connection, file, start, end, is_over)
    is_cancelled = False
    while not burst.done():
        try:
            await asyncio.wait([burst])
        except asyncio.CancelledError:
            is_cancelled = True
            is_over.set()
    if is_cancelled:
        burst.exception()
        raise asyncio.CancelledError
    return burst.result()


def _burst(connection: int, file: int, start: int, end: int, is_over: threading.Event) -> int:
    """Send as long as the reader takes it; return where the rest begins."""
    room = select.poll()
    room.register(connection, select.POLLOUT)
    position = start
    while position < end and not is_over.is_set():
        try:
            sent = os.sendfile(connection, file, position, min(CALL_BYTES, end - position))
        except BlockingIOError:
            if not room.poll(LINGER_MS):
                break
            continue
        if not sent:
            raise EOFError(f"the file ends at byte {position}; expected {end - position} more")
        position += sent
    return position


async def _writable(connection: int) -> None:
    loop, is_writable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(connection, is_writable.set)
    try:
        async with asyncio.timeout(STALL_S):
            await is_writable.wait()
    finally:
        loop.remove_writer(connection)
