"""Connections that send too slowly are dropped: uvicorn itself waits for ever for the rest of a request's head.

Owns the time for the head; the time for the body is looked at by whoever reads it (`service.api.bodies`).
"""

import asyncio
from typing import Final

from service.cli.zerocopy import ZeroCopyProtocol

HEAD_TIMEOUT_S: Final = 15.0
"""Longest time from the opening of a connection, or from its last answer, to the end of the next request's head."""


class PatientProtocol(ZeroCopyProtocol):
    """uvicorn's protocol, files sent by the kernel: it closes a connection that has had its time and has no request being answered."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begin to count."""
        super().connection_made(transport)
        self._count()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count no more."""
        self._stop()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """Stop counting: from here on the request has a route, with bounds of its own."""
        self._stop()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Begin to count for the next request on this connection."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._count()

    def _count(self) -> None:
        self._stop()
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._drop)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _drop(self) -> None:
        # Not close(): what is still to be written to somebody who reads nothing would keep it open.
        self.transport.abort()
