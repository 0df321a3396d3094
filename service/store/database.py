"""Connections: one that writes, a few that read. Owns the SQLite hazards, so that no query needs to know them.

SQLite 3.7.0 to 3.51.2 can corrupt a write-ahead log when two connections write or checkpoint at once. So there is one writing connection,
in one process (a lock file sees to that); it alone checkpoints, and it closes last.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import CursorResult, Executable, event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from service.store.changes import Changes

BUSY_TIMEOUT_MS: Final = 10_000
NUM_READERS: Final = 4
LOCK_WAIT_S: Final = 5.0

T = TypeVar("T")


class DatabaseError(RuntimeError):
    """The database cannot be used as asked. The operator's to mend; trying again does not help."""


class Session:
    """An open transaction. A caller that is cancelled waits for the statement at hand, so that the connection stays sound."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @property
    def dialect_name(self) -> str:
        """Which SQL is spoken: `sqlite`."""
        return self._connection.dialect.name

    async def execute(self, statement: Executable, rows: Sequence[Mapping[str, Any]] | None = None) -> CursorResult[*tuple[Any, ...]]:
        """Run a statement, once or for each row of values."""
        return await _finished(self._connection.execute(statement, rows))

    async def run_sync(self, function: Callable[[Connection], T]) -> T:
        """Run a function that takes SQLAlchemy's synchronous connection."""
        return await _finished(self._connection.run_sync(function))


@dataclass
class Write:
    """One write transaction, and which jobs' readers to wake once it is committed."""

    connection: Session
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
            async with _transaction(self._writer) as session:
                write = Write(session)
                yield write
            for job_id, seq in write.newest.items():
                self._changes.publish(job_id, seq)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Session]:
        """Begin a transaction that only reads: every query in it sees the same moment."""
        async with _transaction(self._reader) as session:
            yield session

    async def close(self) -> None:
        """Close readers, then the writer, then let another process have the database."""
        await self._reader.dispose()
        await self._writer.dispose()
        os.close(self._lock)


@asynccontextmanager
async def _transaction(engine: AsyncEngine) -> AsyncIterator[Session]:
    """Lend a connection: committed at the end, rolled back when it is given back after any error."""
    connection = engine.connect()
    try:
        await _finished(connection.start())
    except asyncio.CancelledError:
        await _finished(connection.close())
        raise
    try:
        yield Session(connection)
        await _finished(connection.commit())
    finally:
        await _finished(connection.close())


async def _finished(work: Coroutine[Any, Any, T]) -> T:
    """Wait for work to its end, also when cancelled meanwhile; then the cancellation goes on.

    SQLAlchemy gives up a connection whose statement is cancelled, and aiosqlite may then keep it, and its lock on the database.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()


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
