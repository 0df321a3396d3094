"""Transactions: those that write, one after another within a scope, and those that only read. Owns no SQL of any noun.

Which database it is, and how writers exclude each other there, is `service.store.sqlite` and `service.store.postgres`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from service.store.changes import Changes
from service.store.clock import database_now
from service.store.errors import DatabaseAwayError, DatabaseError, LeaseLostError
from service.store.postgres import PostgresBackend, is_postgres_away
from service.store.query import Snapshot
from service.store.records import Lease
from service.store.session import Backend, Session, Write, finished, has_no_limits
from service.store.snapshot import SessionSnapshot
from service.store.sqlite import SqliteBackend, is_sqlite_away
from service.store.tables import leases


class Database:
    """Opens transactions; under a lease, only those that the lease still covers may write."""

    def __init__(self, backend: Backend, changes: Changes, lease: Lease | None = None) -> None:
        self._backend = backend
        self._changes = changes
        self._lease = lease

    @classmethod
    def connect(cls, database_url: str, changes: Changes) -> Self:
        """Take the database for this process.

        Args:
            database_url: `sqlite:///path`, or `postgresql://user@host:port/database`.
            changes: told of every commit.
        Raises:
            DatabaseError: neither of them, or it cannot be had.
        """
        try:
            url = make_url(database_url)
        except ArgumentError as error:
            raise DatabaseError("the database URL cannot be read; " + _EXPECTED) from error
        match url.get_backend_name():
            case "sqlite":
                return cls(SqliteBackend(url), changes)
            case "postgresql":
                return cls(PostgresBackend(url, changes), changes)
        raise DatabaseError(f"database {url.render_as_string()} is not supported; {_EXPECTED}")

    @property
    def is_shared(self) -> bool:
        """Whether other controllers may use the database at the same time."""
        return self._backend.is_shared

    @property
    def tokens_edition(self) -> int:
        """Counts what this process did to tokens: what was read at another edition may be out of date."""
        return self._changes.tokens_edition

    def under(self, lease: Lease) -> "Database":
        """Return the same database, every write of which raises LeaseLostError once the lease has run out or has another holder."""
        return Database(self._backend, self._changes, lease)

    @asynccontextmanager
    async def write(self, scope: str) -> AsyncIterator[Write]:
        """Begin a transaction that may write; commit at the end, roll back on any error, then wake the readers.

        Args:
            scope: what it is about, mostly a job's id. Writes of one scope come one after another, in all controllers.
        Raises:
            DatabaseAwayError: the database does not answer.
            LeaseLostError: the lease is not held any more.
        """
        async with self._backend.turn():
            async with _transaction(self._backend.writer) as session:
                await self._backend.enter(session, scope)
                await self._require_lease(session)
                write = Write(session)
                yield write
                await self._backend.announce(write)
            self._wake(write)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Session]:
        """Begin a transaction that only reads: every query in it sees the same moment.

        Raises:
            DatabaseAwayError: the database does not answer.
        """
        async with _transaction(self._backend.reader) as session:
            yield session

    @asynccontextmanager
    async def look(self) -> AsyncIterator[Snapshot]:
        """Begin to read at one moment by statements that are built once, for what is asked often. Raises as `read` does."""
        quick = self._backend.look()
        if quick is None:
            async with self.read() as session:
                yield SessionSnapshot(session)
        else:
            async with quick as snapshot:
                yield snapshot

    async def close(self) -> None:
        """Close every connection; afterwards another process may have the database."""
        await self._backend.close()

    async def _require_lease(self, session: Session) -> None:
        if self._lease is None:
            return
        mine = (leases.c.name == self._lease.name) & (leases.c.holder == self._lease.holder) & (leases.c.term == self._lease.term)
        # Locked against being taken over until this transaction ends.
        query = select(leases.c.name).where(mine & (leases.c.expires_at > database_now())).with_for_update(read=True)
        if (await session.execute(query)).one_or_none() is None:
            raise LeaseLostError(f"lease {self._lease.name} of term {self._lease.term} is not held by {self._lease.holder} any more")

    def _wake(self, write: Write) -> None:
        for job_id, seq in write.newest.items():
            self._changes.publish(job_id, seq)
        for one in write.left:
            self._changes.tell(one)
        for job_id in write.deleted:
            self._changes.forget(job_id)
        if write.is_queue_changed:
            self._changes.jobs.set()
        if write.is_token_changed:
            self._changes.tokens_edition += 1


_EXPECTED = "expected sqlite:///path or postgresql://user@host:port/database; set SYNCBN_DATABASE_URL"


@asynccontextmanager
async def _transaction(engine: AsyncEngine) -> AsyncIterator[Session]:
    """Lend a connection: committed at the end, rolled back when it is given back after any error."""
    connection, is_quick = engine.connect(), has_no_limits(engine.dialect.name)
    try:
        try:
            await finished(connection.start())
        except asyncio.CancelledError:
            await finished(connection.close())
            raise
        try:
            yield Session(connection)
            await finished(connection.commit(), is_begun_here=is_quick)
        finally:
            await finished(connection.close(), is_begun_here=is_quick)
    except (PoolTimeoutError, OSError) as error:
        raise DatabaseAwayError(f"the database gives no connection: {error}") from error
    except DBAPIError as error:
        if _is_away(error):
            raise DatabaseAwayError(f"the database does not answer: {error.orig}") from error
        raise


def _is_away(error: DBAPIError) -> bool:
    """Return whether the database failed, rather than the statement."""
    return error.connection_invalidated or is_sqlite_away(error.orig) or is_postgres_away(error.orig)
