"""Loads an HTTP server from this process and says how long each answer took. Owns the connections; knows no service in particular.

Raw asyncio streams: a full client library would take more of the two cores than the servers that are measured.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

TIMEOUT_S = 60.0
CHUNK_BYTES = 2**20


class Address(NamedTuple):
    """Where a server listens, and headers that every request to it has."""

    host: str
    port: int
    headers: tuple[tuple[str, str], ...] = ()


class Call(NamedTuple):
    """One request."""

    method: str
    path: str
    body: bytes = b""

    def as_bytes(self, address: Address) -> bytes:
        """Return it as it goes over the wire."""
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {address.host}:{address.port}"]
        lines += [f"{name}: {value}" for name, value in address.headers]
        if self.body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(self.body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@dataclass
class Outcome:
    """How long each answer took, and how long all of them together."""

    seconds: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    num_refused: int = 0
    """Answers that were no success."""

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.wall_s

    def ms(self, percentile: int) -> float:
        """Return a percentile in milliseconds."""
        return quantile(self.seconds, percentile) * 1e3

    def __str__(self) -> str:
        refused = f", {self.num_refused} REFUSED" if self.num_refused else ""
        return f"{self.per_s:.0f}/s, p50 {self.ms(50):.1f} ms, p99 {self.ms(99):.1f} ms{refused}"


def quantile(values: list[float], percentile: int) -> float:
    """Return a percentile; of one value that value."""
    return statistics.quantiles(values, n=100, method="inclusive")[percentile - 1] if len(values) > 1 else values[0]


class Connection:
    """One connection that is kept open."""

    def __init__(self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._address = address
        self.reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: Address) -> Connection:
        """Connect."""
        return cls(address, *await asyncio.open_connection(address.host, address.port, limit=2**20))

    async def ask(self, call: Call) -> tuple[int, bytes]:
        """Send a request; return status and body."""
        status, headers = await self.begin(call)
        if headers.get(b"transfer-encoding") == b"chunked":
            return status, b"".join([chunk async for chunk in self.chunks()])
        return status, await self.reader.readexactly(int(headers.get(b"content-length", b"0")))

    async def begin(self, call: Call) -> tuple[int, dict[bytes, bytes]]:
        """Send a request; return status and headers, in lower case."""
        self._writer.write(call.as_bytes(self._address))
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        pairs = (line.partition(b":") for line in lines)
        return int(first[9:12]), {name.lower(): value.strip() for name, _, value in pairs}

    async def chunks(self):
        """Yield the parts of a chunked body."""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    def close(self) -> None:
        """Close it."""
        self._writer.close()


async def ask(address: Address, call: Call):
    """Make one request on a connection of its own; return what its JSON says."""
    connection = await Connection.open(address)
    try:
        status, body = await asyncio.wait_for(connection.ask(call), TIMEOUT_S)
    finally:
        connection.close()
    assert status < 300, f"{call.method} {call.path} answered {status}: {body[:500]!r}"
    return json.loads(body) if body else None


async def load(
    address: Address, call: Callable[[int], Call], num: int, *, connections: int = 8, per_s: float | None = None, limit_s: float = TIMEOUT_S
) -> Outcome:
    """Make `num` requests, or as many as `limit_s` allows.

    Args:
        address: whom to ask.
        call: the request of each number.
        num: how many.
        connections: how many at once.
        per_s: how many a second; time counts from when a request was due, whether or not a connection was free. None: each connection
            asks again as soon as it has its answer.
        limit_s: no request begins later.
    """
    outcome, numbers = Outcome(), itertools.islice(itertools.count(), num)
    opened = [await Connection.open(address) for _ in range(connections)]
    began = time.perf_counter()
    try:
        await asyncio.gather(*(_ask_on(connection, call, numbers, outcome, (began, per_s, limit_s)) for connection in opened))
    finally:
        for connection in opened:
            connection.close()
    outcome.wall_s = time.perf_counter() - began
    return outcome


async def _ask_on(
    connection: Connection, call: Callable[[int], Call], numbers: Iterator[int], outcome: Outcome, pace: tuple[float, float | None, float]
) -> None:
    began, per_s, limit_s = pace
    for number in numbers:
        due = time.perf_counter() if per_s is None else began + number / per_s
        if due > began + limit_s:
            return
        await asyncio.sleep(max(0.0, due - time.perf_counter())) if per_s is not None else None
        status, _ = await asyncio.wait_for(connection.ask(call(number)), TIMEOUT_S)
        outcome.seconds.append(time.perf_counter() - due)
        outcome.num_refused += not 200 <= status < 300


@dataclass
class Readers:
    """Streams that are read: how many events came in all, and how late some of them were."""

    num_open: int = 0
    num_events: int = 0
    delays_s: list[float] = field(default_factory=list)
    """From the event's own time to its arrival, looked at by every 20th reader."""

    async def read(self, address: Address, path: str, is_sampled: bool, last: bytes) -> None:
        """Read one stream until an event that contains `last`."""
        connection = await Connection.open(Address(address.host, address.port, (*address.headers, ("Accept", "text/event-stream"))))
        try:
            status, _ = await connection.begin(Call("GET", path))
            assert status == 200, status
            self.num_open += 1
            async for chunk in connection.chunks():
                self.num_events += chunk.count(b"\ndata: ") + chunk.startswith(b"data: ")
                if is_sampled:
                    self._look_at(chunk)
                if last in chunk:
                    return
        finally:
            connection.close()

    def _look_at(self, chunk: bytes) -> None:
        for line in chunk.split(b"\n"):
            if line.startswith(b"data: "):
                at = datetime.fromisoformat(json.loads(line[6:])["at"])
                self.delays_s.append((datetime.now(UTC) - at).total_seconds())


def download(address: Address, path: str) -> tuple[int, float]:
    """Fetch a file and throw it away; return bytes and seconds. Blocks: for a thread."""
    buffer, received, began = bytearray(CHUNK_BYTES), 0, time.perf_counter()
    with socket.create_connection((address.host, address.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(Call("GET", path).as_bytes(address))
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        head, _, body = head.partition(b"\r\n\r\n")
        size = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        received = len(body)
        while received < size:
            received += (now := connection.recv_into(buffer))
            assert now, f"{path} broke off after {received} of {size} bytes"
    return size, time.perf_counter() - began
