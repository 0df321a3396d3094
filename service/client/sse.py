"""Server-sent events from bytes. Pure: a line is ended by CR, LF or both, and by nothing else (U+2028 in a log line is text)."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One event of a stream as it was sent; `id` is what Last-Event-ID resumes after."""

    event: str
    data: str
    id: str | None


class Decoder:
    r"""The bytes of one stream, in whatever pieces they come; comments (heartbeats) and unfinished events yield nothing.

    >>> decoder = Decoder()
    >>> [list(decoder.feed(piece)) for piece in (b"id: 7\nevent: log\nda", b"ta: hi\n\n: beat\n\n")]
    [[], [Message(event='log', data='hi', id='7')]]
    """

    def __init__(self) -> None:
        self._rest = b""
        self._event, self._data = "message", list[str]()
        self._last_id: str | None = None

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Take in the next bytes and yield the events that they finish."""
        for line in self._lines(chunk):
            if line:
                self._take(line)
                continue
            if self._data:
                yield Message(self._event, "\n".join(self._data), self._last_id)
            self._event, self._data = "message", []

    def _lines(self, chunk: bytes) -> Iterator[str]:
        """Yield the lines that are finished. One without an end is not: it may be half a line."""
        rest = self._rest + chunk
        # A CR at the very end may be the first half of CR LF, so it waits for the next chunk.
        held = b"\r" if rest.endswith(b"\r") else b""
        *done, rest = rest.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + held
        return (line.decode("utf-8", errors="replace") for line in done)

    def _take(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._event = value
        elif field == "data":
            self._data.append(value)
        elif field == "id" and "\0" not in value:
            self._last_id = value
