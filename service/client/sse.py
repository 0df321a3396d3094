"""Server-sent events from bytes. Pure: a line is ended by CR, LF or both, and by nothing else (U+2028 in a log line is text)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One event of a stream as it was sent; `id` is what Last-Event-ID resumes after."""

    event: str
    data: str
    id: str | None


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Split a byte stream into lines without their ends. A last line without an end is dropped: it may be half a line."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        # A CR at the very end may be the first half of CR LF, so it waits for the next chunk.
        held = b"\r" if rest.endswith(b"\r") else b""
        whole = rest.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *done, rest = whole.split(b"\n")
        rest += held
        yield from (line.decode("utf-8", errors="replace") for line in done)


def messages(chunks: Iterable[bytes]) -> Iterator[Message]:
    r"""Parse a byte stream; comments (heartbeats) and unfinished events yield nothing.

    >>> list(messages([b"id: 7\nevent: log\nda", b"ta: hi\n\n: beat\n\n"]))
    [Message(event='log', data='hi', id='7')]
    """
    event, data, last_id = "message", list[str](), None
    for line in lines(chunks):
        if not line:
            if data:
                yield Message(event, "\n".join(data), last_id)
            event, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            event = value
        elif field == "data":
            data.append(value)
        elif field == "id" and "\0" not in value:
            last_id = value
