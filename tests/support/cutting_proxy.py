"""A proxy that cuts connections after a number of bytes, this way or that, as a network does that fails."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

PIECE = 16_384


class CuttingProxy:
    """Forwards to a port on the loopback. The next connection is cut as `cut_next` says; the ones after it are whole."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._limits: tuple[int | None, int | None] = (None, None)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.passed = [0, 0]
        """Bytes of requests and of answers that went through the last connection."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_next(self, *, request: int | None = None, answer: int | None = None) -> None:
        """Cut the next connection once so many bytes of the request, or of the answer, went through."""
        self._limits = (request, answer)

    def close(self) -> None:
        """Accept nobody any more."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                limits, self._limits, self.passed = self._limits, (None, None), [0, 0]
                server = socket.create_connection(("127.0.0.1", self._port))
                for way, (source, target) in enumerate([(client, server), (server, client)]):
                    threading.Thread(target=self._forward, args=(source, target, way, limits[way], self.passed), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, way: int, limit: int | None, passed: list[int]) -> None:
        with contextlib.suppress(OSError):
            while limit is None or passed[way] < limit:
                piece = source.recv(PIECE if limit is None else min(PIECE, limit - passed[way]))
                if not piece:
                    break
                passed[way] += len(piece)  # before anybody can have it, and look here
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                if limit is not None:  # a reset, not an end
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
                end.close()


@contextlib.contextmanager
def cutting_proxy(port: int) -> Iterator[CuttingProxy]:
    """Run a proxy inside the block."""
    proxy = CuttingProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
