"""Connections: one that writes, a few that read. Owns the SQLite hazards, so that no query needs to know them.

SQLite 3.7.0 to 3.51.2 can corrupt a write-ahead log when two connections write or checkpoint at once. So there is one writing connection,
in one process (a lock file sees to that); it alone checkpoints, and it closes last.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from service.store.changes import Changes

BUSY_TIMEOUT_MS: Final = 10_000
NUM_READERS: Final = 4
LOCK_WAIT_S: Final = 5.0


class DatabaseError(RuntimeError):
    """The database cannot be used as asked. The operator's to mend; trying again does not help."""


@dataclass
class Write:
    """One write transaction: its connection, and which jobs' readers to wake once it is committed."""

    connection: AsyncConnection
    newest: dict[str, int] = field(default_factory=dict)


class Database:
    """The two engines and the write lock."""

    def __init__(self, url: URL, changes: Changes, lock: int) -> None:
        self._changes = changes
        self._lock = lock
        self._turn = asyncio.Lock()
        self._writer = _engine(url, size=1, begin="BEGIN IMMEDIATE", pragmas=("journal_mode=WAL", "synchronous=FULL"))
        # A reader that checkpointed would be the second of the hazard above.
        self._reader = _engine(url, size=NUM_READERS, begin="BEGIN", pragmas=("wal_autocheckpoint=0", "query_only=ON"))

    @classmethod
    def connect(cls, database_url: str, changes: Changes) -> "Database":
        """Take the database for this process.

        Args:
            database_url: `sqlite:///path`; the directory is made where it is missing.
            changes: told of every commit.
        Raises:
            DatabaseError: not SQLite in a file, or another process has it.
        """
        url = make_url(database_url)
        if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
            raise DatabaseError(f"database {url.render_as_string()} is not supported; expected sqlite:///path; set SYNCBN_DATABASE_URL")
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(url.set(drivername="sqlite+aiosqlite"), changes, _take_lock(path.with_name(path.name + ".lock")))

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Write]:
        """Begin a transaction that may write; commit at the end, roll back on any error, then wake the readers."""
        async with self._turn:
            async with self._writer.begin() as connection:
                write = Write(connection)
                yield write
            for job_id, seq in write.newest.items():
                self._changes.publish(job_id, seq)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction that only reads: every query in it sees the same moment."""
        async with self._reader.begin() as connection:
            yield connection

    async def close(self) -> None:
        """Close readers, then the writer, then let another process have the database."""
        await self._reader.dispose()
        await self._writer.dispose()
        os.close(self._lock)


def _engine(url: URL, *, size: int, begin: str, pragmas: tuple[str, ...]) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=size, max_overflow=0, pool_timeout=60)

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing on its own; _begin does
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _take_lock(path: Path) -> int:
    """Hold an advisory lock until the process ends, however it ends. A predecessor that is just dying gets a moment."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(lock)
                raise DatabaseError(
                    f"{path} is held by another process; expected one controller for a database; stop the other one or set SYNCBN_HOME"
                ) from error
            time.sleep(0.05)
        else:
            return lock
