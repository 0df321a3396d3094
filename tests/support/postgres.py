"""A real PostgreSQL of one's own: a server in a temporary directory, on a free loopback port, that can be killed and started again."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

START_TIMEOUT_S = 60.0


def binaries() -> Path | None:
    """Return the directory of PostgreSQL's programs, newest version first, or None where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)
    on_path = shutil.which("postgres")
    candidates = [*found, *([Path(on_path)] if on_path else [])]
    return next((path.parent for path in candidates if (path.parent / "initdb").exists()), None)


class PostgresServer:
    """One server. What survives its `kill` survives anywhere, unless it was told not to flush."""

    def __init__(self, directory: Path, *, flushes: bool) -> None:
        self._flushes = "on" if flushes else "off"
        self._bin = binaries()
        self._data = directory / "data"
        self._user = unprivileged_user()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if self._user is not None:
            shutil.chown(directory, self._user)
        self._run(str(self._bin / "initdb"), "-D", str(self._data), "-U", "syncbn", "-A", "trust", "-E", "UTF8", "--locale=C")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port), "-c", "listen_addresses=127.0.0.1"]
        log = (self._data.parent / "log").open("ab")
        self._process = subprocess.Popen(
            [*command, "-k", str(self._data), "-c", "max_connections=60", "-c", f"fsync={self._flushes}"],
            user=self._user, stdout=log, stderr=log, cwd=self._data, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while subprocess.run(
            [str(self._bin / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)], capture_output=True, check=False
        ).returncode:
            assert self._process.poll() is None, (self._data.parent / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "PostgreSQL did not answer"
            time.sleep(0.05)

    def kill(self) -> None:
        """End the server and every process of it with SIGKILL, as a power cut would."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def new_database(self) -> str:
        """Make an empty database; return its URL."""
        name = f"test_{uuid4().hex}"
        self._run(str(self._bin / "createdb"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "syncbn", name)
        return f"postgresql://syncbn@127.0.0.1:{self.port}/{name}"

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, user=self._user, capture_output=True, text=True, check=False, cwd="/", timeout=60)
        assert done.returncode == 0, done.stderr


def unprivileged_user() -> str | None:
    """Return whom to run as: PostgreSQL refuses root."""
    if os.getuid() != 0:
        return None
    return next(user for user in ("postgres", "nobody") if user in {entry.pw_name for entry in pwd.getpwall()})


@contextlib.contextmanager
def postgres_server(*, flushes: bool = True) -> Iterator[PostgresServer]:
    """Run a server inside the block; without flushes it is quicker, and may not be killed."""
    directory = Path(tempfile.mkdtemp(prefix="syncbn-postgres-"))
    server = PostgresServer(directory, flushes=flushes)
    try:
        server.start()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError, AssertionError):
            server.kill()
        shutil.rmtree(directory, ignore_errors=True)
