"""Tests of service/cli/zerocopy.py: uvicorn on a real port, an application that sends a file by the kernel, and readers of all kinds."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import uvicorn
import uvloop

from service.cli import zerocopy
from service.cli.zerocopy import EXTENSION, NUM_THREADS, ZeroCopyProtocol

CONTENT = bytes(range(256)) * 2**16
"""More than any socket takes at once."""
WAIT_S = 20.0


class Site(NamedTuple):
    """A server, the file that it sends, and what became of its answers."""

    port: int
    path: object
    errors: list
    offered: list


def _application(path, errors, offered):
    """Send the file: its first bytes as bytes, then all but the last by the kernel, then the last."""

    async def app(scope, _receive, send):
        if scope["type"] != "http":
            return
        offered.append(EXTENSION in scope.get("extensions", {}))
        promised = 1000 if scope["path"] == "/short" else len(CONTENT)
        headers = [(b"content-length", b"%d" % promised)] if scope["path"] != "/chunked" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with path.open("rb") as file:
            try:
                if scope["path"] == "/last":
                    await send({"type": EXTENSION, "file": file, "offset": 0, "count": len(CONTENT)})
                    return
                await send({"type": "http.response.body", "body": CONTENT[:10], "more_body": True})
                await send({"type": EXTENSION, "file": file, "offset": 10, "count": len(CONTENT) - 20, "more_body": True})
                await send({"type": "http.response.body", "body": CONTENT[-10:], "more_body": False})
            except BaseException as error:
                errors.append(error)
                raise

    return app


@pytest.fixture(params=["asyncio", "uvloop"])
def site(request, tmp_path, monkeypatch):
    """The server, on either loop, with little patience."""
    monkeypatch.setattr(zerocopy, "STALL_S", 1.0)
    path, errors, offered = tmp_path / "file.bin", [], []
    path.write_bytes(CONTENT)
    config = uvicorn.Config(_application(path, errors, offered), http=ZeroCopyProtocol, port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    run = asyncio.run if request.param == "asyncio" else uvloop.run
    thread = threading.Thread(target=lambda: run(server.serve()))
    thread.start()
    _until(lambda: server.started)
    yield Site(server.servers[0].sockets[0].getsockname()[1], path, errors, offered)
    server.should_exit = True
    thread.join(WAIT_S)
    assert not thread.is_alive()


def _until(is_so):
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _asking(site, path="/", times=1):
    connection = socket.create_connection(("127.0.0.1", site.port), timeout=WAIT_S)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * times)
    return connection


def _bodies(connection, number=1):
    """Read so many answers, one after the other, from one connection."""
    received, bodies = b"", []
    with connection, connection.makefile("rb") as answers:
        for _ in range(number):
            while answers.readline().strip():
                pass
            received = answers.read(len(CONTENT))
            bodies.append(received)
    return bodies


def _num_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_bytes_and_file_come_in_their_order(site):
    """Bytes before, what the kernel sends, bytes after; the connection is used again, and requests that were sent at once are answered."""
    bodies = _bodies(_asking(site, times=3), 3)
    assert [body == CONTENT for body in bodies] == [True] * 3
    assert site.errors == []


def test_a_file_may_be_the_end_of_an_answer(site):
    """Without `more_body` the answer is complete, and the next request is answered."""
    assert [body == CONTENT for body in _bodies(_asking(site, "/last", times=2), 2)] == [True] * 2


@pytest.mark.parametrize("path", ["/short", "/chunked"])
def test_an_answer_must_have_promised_as_many_bytes(site, path):
    """Else the connection breaks off, and the application hears why."""
    body = _bodies(_asking(site, path))[0]
    assert len(body) < 1000
    _until(lambda: site.errors)
    assert "expected as many as Content-Length leaves" in str(site.errors[0])


def test_a_file_that_becomes_shorter_breaks_off(site):
    """The reader sees an answer that ends early; the application hears where."""
    connection = _asking(site)
    assert connection.recv(100)
    os.truncate(site.path, 2**20 * 12)
    with connection:
        received = 0
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(2**20):
                received += len(chunk)
    assert received < len(CONTENT)
    _until(lambda: site.errors)
    assert isinstance(site.errors[0], EOFError)
    assert f"the file ends at byte {2**20 * 12}" in str(site.errors[0])


def test_readers_that_do_not_read_hold_up_nobody_and_are_dropped(site):
    """More of them than there are threads: another one has its file at once; they get an end after a while, and nothing of theirs stays."""
    before = _num_files()
    idle = [_asking(site) for _ in range(2 * NUM_THREADS)]
    for connection in idle:
        assert connection.recv(1)
    assert _bodies(_asking(site)) == [CONTENT]
    _until(lambda: _num_files() == before + len(idle))
    for connection in idle:
        received = 0
        with connection, contextlib.suppress(ConnectionError):
            while chunk := connection.recv(2**20):
                received += len(chunk)
        assert received < len(CONTENT)
    assert site.errors == []


def test_a_slow_reader_gets_everything(site):
    """One that takes a little now and then, each time within the patience."""
    connection = _asking(site)
    assert connection.recv(10)
    received = bytearray()
    with connection:
        for _ in range(8):
            time.sleep(3 * zerocopy.LINGER_MS / 1e3)
            received += connection.recv(2**20)
        while not received.endswith(CONTENT[-10:]) or len(received) < len(CONTENT):
            received += connection.recv(2**22)
    assert received.partition(b"\r\n\r\n")[2] == CONTENT


def test_a_reader_that_leaves_leaves_nothing_behind(site):
    """No open file, no busy thread, no error."""
    before = _num_files()
    for _ in range(3 * NUM_THREADS):
        connection = _asking(site)
        assert connection.recv(100)
        connection.close()
    _until(lambda: _num_files() == before)
    assert _bodies(_asking(site)) == [CONTENT]
    assert site.errors == []


def test_cancelled_while_it_sends_no_thread_uses_the_socket_any_more():
    """Nor the file: both may be closed then."""

    async def run():
        here, there = socket.socketpair()
        file = os.memfd_create("content")
        os.write(file, CONTENT)
        here.setblocking(False)
        with here, there:
            sending = asyncio.create_task(zerocopy.send_range(here.fileno(), file, 0, len(CONTENT)))
            await asyncio.get_running_loop().run_in_executor(None, there.recv, 1)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            os.close(file)
            assert zerocopy._threads._work_queue.empty()

    asyncio.run(run())


def test_where_there_is_tls_it_is_not_offered():
    """The kernel would send the file as it is."""

    class Transport(asyncio.Transport):
        def __init__(self, context):
            super().__init__({"sslcontext": context})

    async def offered(context):
        config = uvicorn.Config(lambda: None, log_level="critical")
        protocol = ZeroCopyProtocol(config, uvicorn.server.ServerState(), {})
        protocol.connection_made(Transport(context))
        protocol.on_message_begin()
        return protocol.scope.get("extensions")

    assert asyncio.run(offered(None)) == {EXTENSION: {}}
    assert asyncio.run(offered(object())) is None
