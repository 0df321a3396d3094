"""Tests of service/cli/connections.py and of the bound on bodies: who sends too slowly is dropped, and the others are served meanwhile."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn

from service.app import create_app
from service.cli import connections
from service.cli.connections import PatientProtocol
from service.settings import Settings

HEAD_S = 0.6
BODY_S = 0.6
NUM_SLOW = 200


@contextmanager
def _served(home):
    settings = Settings(home=home, body_timeout_s=BODY_S)
    config = uvicorn.Config(
        create_app(settings), http=PatientProtocol, port=0, log_level="error", lifespan="on", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1], settings.files.token.read_text().strip()
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The application on a real port, with little patience: port and token."""
    patch = pytest.MonkeyPatch()
    patch.setattr(connections, "HEAD_TIMEOUT_S", HEAD_S)
    with _served(tmp_path_factory.mktemp("home")) as found:
        yield found
    patch.undo()


@pytest.fixture
def connect(service):
    """Open connections that are closed with the test."""
    with contextlib.ExitStack() as until_the_end:

        def opened():
            return until_the_end.enter_context(socket.create_connection(("127.0.0.1", service[0]), timeout=10))

        yield opened


def _ask(token, path="/v1/norms"):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


def _until_closed(connection):
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65_536):
            received += chunk
    return received


def _drip(connection, data):
    """Send a byte every 50 ms until the other side closes; return how long that took."""
    start = time.monotonic()
    with contextlib.suppress(OSError):
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
    return time.monotonic() - start


@pytest.mark.parametrize("begun", [b"", b"GET /v1", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-"])
def test_a_connection_that_sends_no_whole_head_is_closed(connect, begun):
    """Nothing at all, or a beginning."""
    connection = connect()
    start = time.monotonic()
    connection.sendall(begun)

    assert _until_closed(connection) == b""
    assert HEAD_S * 0.9 < time.monotonic() - start < 5


def test_a_head_that_drips_is_not_waited_for(connect):
    """A byte now and then does not buy time."""
    assert _drip(connect(), b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 400) < 5


def test_a_second_head_on_a_connection_has_its_time_too(connect, service):
    """After the first answer, dripping begins."""
    connection = connect()
    connection.sendall(_ask(service[1]))
    assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
    assert _drip(connection, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 400) < 5


def test_a_body_that_drips_is_answered_408_and_closed(connect, service):
    """The answer says how long it may take."""
    connection = connect()
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service[1]}\r\n"
    connection.sendall(head.encode() + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
    answer = _until_closed(connection)

    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "body_too_slow"


def _whole_answer(connection) -> bytes:
    """Read until the body is as long as the head says; head and body may come apart."""
    answer = b""
    while True:
        answer += connection.recv(65_536)
        head, end, body = answer.partition(b"\r\n\r\n")
        length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        if end and len(body) >= length:
            return answer


def test_a_request_that_is_being_answered_is_not_cut(connect, service):
    """A stream lives longer than the head may take."""
    setup = connect()
    body = json.dumps({"name": "t", "model": {"name": "resnet18"}, "data": {"name": "digits"}})
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service[1]}\r\nContent-Type: application/json\r\n"
    setup.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    job_id = json.loads(_whole_answer(setup).partition(b"\r\n\r\n")[2])["id"]
    stream = connect()
    stream.sendall(_ask(service[1], f"/v1/jobs/{job_id}/events").replace(b"\r\n\r\n", b"\r\nAccept: text/event-stream\r\n\r\n"))
    assert b"200 OK" in stream.recv(65_536)
    stream.settimeout(0.1)
    deadline = time.monotonic() + 2.5 * HEAD_S
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            assert stream.recv(65_536), "the stream was cut"


def test_many_slow_connections_do_not_keep_others_from_being_served(connect, service):
    """Two hundred that wait for their end, and a request among them."""
    slow = [connect() for _ in range(NUM_SLOW)]
    for connection in slow:
        connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: ")
    start = time.monotonic()
    healthy = connect()
    healthy.sendall(_ask(service[1]))
    assert healthy.recv(65_536).startswith(b"HTTP/1.1 200")
    assert time.monotonic() - start < 2
    assert all(_until_closed(connection) == b"" for connection in slow)
