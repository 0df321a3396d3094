"""Reading at one moment, and writing, by statements that are built once: past SQLAlchemy where the database is SQLite."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from service.store.driver import Connection
from service.store.query import Command, Query, Row, Snapshot
from service.store.session import Session, finished

FEW_ROWS: Final = 64
"""Of more, SQLite is asked in a thread."""


class SessionSnapshot:
    """A transaction of SQLAlchemy's. See Prepared."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def rows(self, query: Query, **values: Any) -> Sequence[Row]:
        """See Snapshot."""
        return (await self._session.execute(query.statement, [values])).all()

    async def run(self, command: Command, rows: Sequence[Mapping[str, Any]]) -> None:
        """See Prepared."""
        await self._session.execute(command.statement, rows)


class SqliteSnapshot:
    """A transaction of the driver's. See Prepared."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def rows(self, query: Query, **values: Any) -> Sequence[Row]:
        """See Snapshot. A caller that is cancelled waits for the statement, so that the connection stays sound."""
        cursor = self._connection.cursor()
        try:
            await finished(cursor.execute(query.sql, query.parameters(values)), is_begun_here=True)
            return await cursor.fetchall()
        finally:
            await cursor.close()

    async def run(self, command: Command, rows: Sequence[Mapping[str, Any]]) -> None:
        """See Prepared."""
        connection, values = self._connection.open(), [command.parameters(row) for row in rows]
        if len(rows) > FEW_ROWS:
            await finished(self._connection.aside(connection.executemany, command.sql, values))
            return
        for one in values:
            connection.execute(command.sql, one)


class SqliteSnapshots:
    """A few connections that only read, opened when they are needed."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], most: int) -> None:
        self._connect = connect
        self._places = asyncio.Semaphore(most)
        self._idle: list[Connection] = []

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Snapshot]:
        """Begin to read at one moment, that of the first statement."""
        async with self._places:
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                connection.open().execute("BEGIN")
                yield SqliteSnapshot(connection)
            finally:
                try:
                    connection.open().rollback()
                except sqlite3.Error:
                    connection.stop()
                    raise
                self._idle.append(connection)

    async def close(self) -> None:
        """Close the connections, which nobody uses any more."""
        while self._idle:
            await self._idle.pop().close()
