"""The one connection that writes to SQLite: who writes when, and what is committed together. Knows no SQL of any noun.

A commit waits for the disk, and whoever wants to write meanwhile waits for the commit. Those who have waited so write one after another
into one transaction, and wait for its commit together. Nobody is told that his write is done before it is on the disk. Each of them has a
savepoint: one that fails undoes what it did and nothing else. Where the commit fails, or SQLite gives the whole transaction up, all fail.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.store.driver import Connection
from service.store.errors import DatabaseAwayError
from service.store.session import finished


@dataclass
class _Shared:
    """A transaction that others may join, until it is over: committed, or failed."""

    over: asyncio.Event = field(default_factory=asyncio.Event)
    error: sqlite3.Error | None = None

    def end(self, error: sqlite3.Error | None) -> None:
        """Tell those who wait for it."""
        self.error = error
        self.over.set()

    async def committed(self) -> None:
        """Wait until it is committed, or raise DatabaseAwayError."""
        await self.over.wait()
        if self.error is not None:
            raise DatabaseAwayError(f"the database did not commit: {self.error}") from self.error


class SqliteWriter:
    """Lends the connection, opened when it is first needed, to one after another."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self._shared: _Shared | None = None

    async def connection(self) -> Connection:
        """Return the connection."""
        if self._connection is None:
            self._connection = await self._connect()
        return self._connection

    @asynccontextmanager
    async def begin(self, *, is_alone: bool) -> AsyncIterator[Connection]:
        """Begin to write; at the end what was written is on the disk.

        Args:
            is_alone: commit first what others have written.
        Raises:
            sqlite3.Error: as SQLite says.
            DatabaseAwayError: it did not commit.
        """
        async with self._turn:
            connection = await finished(self.connection(), is_begun_here=True)
            if is_alone and self._shared is not None:
                await finished(self._commit(connection, self._shared))
            shared = self._shared
            if shared is None:
                async with _first(connection):
                    yield connection
                shared = self._shared = _Shared()
                ending = self._finish(connection, shared)
            else:
                async with self._joined(connection, shared):
                    yield connection
                ending = shared.committed()
        await finished(ending, is_begun_here=True)

    async def close(self) -> None:
        """Close the connection, which nobody uses any more."""
        if self._connection is not None:
            await self._connection.close()

    @asynccontextmanager
    async def _joined(self, connection: Connection, shared: _Shared) -> AsyncIterator[None]:
        """Write within the transaction of others."""
        execute = connection.open().execute
        execute("SAVEPOINT one")
        try:
            yield
            execute("RELEASE one")
        except BaseException as error:
            if connection.open().in_transaction:
                await finished(connection.aside(_undo, connection.open()))
            else:
                # A full or failing disk makes SQLite give up all of it.
                self._shared = None
                shared.end(error if isinstance(error, sqlite3.Error) else _given_up())
            raise

    async def _finish(self, connection: Connection, shared: _Shared) -> None:
        """Commit, after all who wait for their turn now."""
        async with self._turn:
            if not shared.over.is_set():
                await self._commit(connection, shared)
        await shared.committed()

    async def _commit(self, connection: Connection, shared: _Shared) -> None:
        self._shared = None
        failure: sqlite3.Error | None = sqlite3.OperationalError("broken off")
        try:
            await connection.commit()
            failure = None
        except sqlite3.Error as error:
            failure = error
            await connection.rollback()
        finally:
            shared.end(failure)


@asynccontextmanager
async def _first(connection: Connection) -> AsyncIterator[None]:
    """Begin a transaction, and leave it open for others, unless it fails."""
    try:
        await finished(connection.begin(), is_begun_here=True)
        yield
        if not connection.open().in_transaction:
            raise _given_up()
    except BaseException:
        await finished(connection.rollback(), is_begun_here=True)
        raise


def _given_up() -> sqlite3.Error:
    return sqlite3.OperationalError("SQLite gave the transaction up")


def _undo(connection: sqlite3.Connection) -> None:
    connection.execute("ROLLBACK TO one")
    connection.execute("RELEASE one")
