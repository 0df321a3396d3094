"""SQLite for SQLAlchemy's asyncio dialect: what is short runs at once, everything else in a thread of the connection.

The usual driver, aiosqlite, hands every step of every statement to a thread and back, some forty times for one small request, and each
time waits for Python's lock: looking up a job took a hundred times as long as SQLite needs for it. Here a query is begun at once, with a
bound on its work; one that passes it is begun anew in the thread. So is, from the outset, what waits for the disk or for a lock.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self, TypeVar

T = TypeVar("T")

SHORT_STEPS: Final = 20_000
"""Instructions of SQLite's machine, about a millisecond, after which a query goes to the thread. A reading one may be begun twice."""

# One row or one job's, into memory: the disk is written by the commit. A plain BEGIN takes no lock.
_SHORT: Final = frozenset({"INSERT", "UPDATE", "BEGIN"})
BUSY_TIMEOUT_MS: Final = 10_000


class Connection:
    """A connection, as SQLAlchemy's adapter for aiosqlite uses one. Begins no transaction by itself. Statements come one after another."""

    def __init__(self, path: str, *, is_reader: bool) -> None:
        self._connection: sqlite3.Connection | None = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._is_reader = is_reader
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")

    def cursor(self) -> "Cursor":
        """Return a cursor."""
        return Cursor(self, self.open().cursor())

    def open(self) -> sqlite3.Connection:
        """Return the connection underneath.

        Raises:
            ValueError: it is closed. The adapter knows these words.
        """
        if self._connection is None:
            raise ValueError("no active connection")
        return self._connection

    async def aside(self, function: Callable[..., T], *args: Any) -> T:
        """Run something in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def begin(self) -> None:
        """Begin a transaction that writes. Nobody else in this process may; for a tool that holds the lock, the thread waits."""
        if not self._has_begun():
            await self.aside(self.open().execute, "BEGIN IMMEDIATE")

    async def create_function(self, *args: Any, **options: Any) -> None:
        """Give SQL a function."""
        self.open().create_function(*args, **options)

    async def commit(self) -> None:
        """Commit: where something was written, that waits for the disk."""
        await self._end(self.open().commit)

    async def rollback(self) -> None:
        """Roll back. The pool asks for it after every transaction, committed ones too."""
        await self._end(self.open().rollback)

    async def close(self) -> None:
        """Close it; the last one of a file checkpoints."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self.aside(connection.close)
            self._thread.shutdown(wait=False)

    def stop(self) -> None:
        """Let go of it, outside of any loop."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._thread.submit(connection.close)
            self._thread.shutdown(wait=False)

    def _has_begun(self) -> bool:
        execute = self.open().execute
        execute("PRAGMA busy_timeout=0")
        try:
            execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                return False
            raise
        finally:
            execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        return True

    async def _end(self, function: Callable[[], None]) -> None:
        if self._is_reader or not self.open().in_transaction:
            function()
        else:
            await self.aside(function)


class Lent:
    """The writing connection, as SQLAlchemy borrows it. Its transactions, and its end, are `service.store.writer`'s."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def cursor(self) -> "Cursor":
        """Return a cursor."""
        return self._connection.cursor()

    async def create_function(self, *args: Any, **options: Any) -> None:
        """Give SQL a function."""
        await self._connection.create_function(*args, **options)

    async def commit(self) -> None:
        """Do nothing."""

    async def rollback(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class Cursor:
    """One statement and its rows, all of which are read at once."""

    def __init__(self, connection: Connection, cursor: sqlite3.Cursor) -> None:
        self._connection = connection
        self._cursor = cursor
        self._rows: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    @property
    def description(self) -> Any:
        """The columns."""
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        """How many rows were changed."""
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        """See sqlite3."""
        return self._cursor.lastrowid

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Run a statement."""
        verb = sql[:6]
        if verb == "SELECT" and self._tried(sql, parameters):
            return
        if verb in _SHORT:
            self._run(sql, parameters)
        else:
            await self._connection.aside(self._run, sql, parameters)

    async def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement for each row of values."""
        await self._connection.aside(self._cursor.executemany, sql, rows)

    async def fetchall(self) -> list[Any]:
        """Return the rows."""
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """Close it."""
        self._cursor.close()

    def _run(self, sql: str, parameters: Sequence[Any]) -> None:
        self._cursor.execute(sql, parameters)
        self._rows = self._cursor.fetchall() if self._cursor.description else []

    def _tried(self, sql: str, parameters: Sequence[Any]) -> bool:
        """Run a query; return False where it was broken off because it is long. That changes nothing, in a transaction either."""
        connection = self._connection.open()
        connection.set_progress_handler(_enough, SHORT_STEPS)
        try:
            self._run(sql, parameters)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                return False
            raise
        finally:
            connection.set_progress_handler(None, 0)
        return True


def _enough() -> int:
    return 1
