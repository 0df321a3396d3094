"""SQLite in a file: one connection that writes, a few that read. Owns the hazards of SQLite, so that no query needs to know them.

SQLite 3.7.0 to 3.51.2 can corrupt a write-ahead log when two connections write or checkpoint at once. So there is one writing connection,
in one process (a lock file sees to that); it alone checkpoints, and it closes last.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from service.store.driver import BUSY_TIMEOUT_MS, Lent
from service.store.driver import Connection as SqliteConnection
from service.store.errors import DatabaseAwayError, DatabaseError
from service.store.lending import away_said
from service.store.query import Snapshot
from service.store.session import Session, Write
from service.store.snapshot import SqliteSnapshot, SqliteSnapshots
from service.store.writer import SqliteWriter

NUM_READERS: Final = 4
LOCK_WAIT_S: Final = 5.0
_WRITING: Final = ("journal_mode=WAL", "synchronous=FULL")
# A reader that checkpointed would be the second of the hazard above.
_READING: Final = ("wal_autocheckpoint=0", "query_only=ON")


class SqliteBackend:
    """The two engines and the lock file. See Backend."""

    is_shared = False

    def __init__(self, url: URL) -> None:
        """Take the database for this process.

        Args:
            url: `sqlite:///path`; the directory is made where it is missing.
        Raises:
            DatabaseError: not a file, or another process has it.
        """
        if not url.database or url.database == ":memory:":
            raise DatabaseError(f"database {url.render_as_string()} is not in a file; expected sqlite:///path; set SYNCBN_DATABASE_URL")
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(path.with_name(path.name + ".lock"))
        driver = url.set(drivername="sqlite+aiosqlite")
        self._writer = SqliteWriter(partial(_connect, str(path), _WRITING))
        self._writing = _engine(driver, self._lent, 1)
        self.reader = _engine(driver, partial(_connect, str(path), _READING), NUM_READERS)
        event.listen(self.reader.sync_engine, "begin", _begin)
        self._snapshots = SqliteSnapshots(partial(_connect, str(path), _READING), NUM_READERS)

    @asynccontextmanager
    async def write(self, scope: str, *, is_alone: bool) -> AsyncIterator[Write]:  # noqa: ARG002 - one writer excludes every scope
        """See Backend. There is no other controller to be told."""
        with self._away_said(), away_said(self.is_away):
            async with self._writer.begin(is_alone=is_alone) as connection:
                session = Session(self._writing)
                try:
                    yield Write(session, SqliteSnapshot(connection))
                finally:
                    await session.close()

    @asynccontextmanager
    async def look(self) -> AsyncIterator[Snapshot]:
        """See Backend."""
        with self._away_said():
            async with self._snapshots.begin() as snapshot:
                yield snapshot

    def is_away(self, error: BaseException | None) -> bool:
        """See Backend. The file could not be used just now: locked, no memory, no disk, a failing disk, or gone."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN}

    async def close(self) -> None:
        """See Backend."""
        await self._snapshots.close()
        await self.reader.dispose()
        await self._writing.dispose()
        await self._writer.close()
        os.close(self._lock)

    async def _lent(self) -> Lent:
        return Lent(await self._writer.connection())

    @contextmanager
    def _away_said(self) -> Iterator[None]:
        """Turn what SQLite itself raises where it is away into DatabaseAwayError."""
        try:
            yield
        except sqlite3.Error as error:
            if self.is_away(error):
                raise DatabaseAwayError(f"the database does not answer: {error}") from error
            raise


def _engine(url: URL, connect: Callable[[], Awaitable[Any]], size: int) -> AsyncEngine:
    return create_async_engine(url, async_creator=connect, pool_size=size, max_overflow=0, pool_timeout=60)


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


async def _connect(path: str, pragmas: tuple[str, ...]) -> SqliteConnection:
    connection = SqliteConnection(path, is_reader=pragmas == _READING)
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON", *pragmas):
        # In its thread: the first to open the file after a crash recovers it.
        await connection.aside(connection.open().execute, f"PRAGMA {pragma}")
    return connection


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
