"""Transactions: those that write, one after another within a scope, and those that only read. Owns no SQL of any noun.

Which database it is, and how writers exclude each other there, is `service.store.sqlite` and `service.store.postgres`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

from sqlalchemy import bindparam, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from service.store.changes import Changes
from service.store.clock import database_now
from service.store.errors import DatabaseError, LeaseLostError
from service.store.lending import transaction
from service.store.postgres import PostgresBackend
from service.store.query import Query, Snapshot
from service.store.records import Lease
from service.store.session import Backend, Session, Write
from service.store.snapshot import SessionSnapshot
from service.store.sqlite import SqliteBackend
from service.store.tables import leases

_MINE: Final = (leases.c.name == bindparam("name")) & (leases.c.holder == bindparam("holder")) & (leases.c.term == bindparam("term"))
# Locked against being taken over until the transaction ends.
_LEASE: Final = Query(select(leases.c.name).where(_MINE & (leases.c.expires_at > database_now())).with_for_update(read=True))
_EXPECTED: Final = "expected sqlite:///path or postgresql://user@host:port/database; set SYNCBN_DATABASE_URL"


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
    async def write(self, scope: str, *, is_alone: bool = False) -> AsyncIterator[Write]:
        """Begin a transaction that may write; commit at the end, roll back on any error, then wake the readers.

        Args:
            scope: what it is about, mostly a job's id. Writes of one scope come one after another, in all controllers.
            is_alone: what is written elsewhere follows from what is found here, so all of that must be on the disk: nothing is found that
                others have written and not committed yet.
        Raises:
            DatabaseAwayError: the database does not answer.
            LeaseLostError: the lease is not held any more.
        """
        async with self._backend.write(scope, is_alone=is_alone) as write:
            await self._require_lease(write)
            yield write
        self._wake(write)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Session]:
        """Begin a transaction that only reads: every query in it sees the same moment.

        Raises:
            DatabaseAwayError: the database does not answer.
        """
        async with transaction(self._backend.reader, self._backend.is_away) as session:
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

    async def _require_lease(self, write: Write) -> None:
        lease = self._lease
        if lease is not None and not await write.prepared.rows(_LEASE, name=lease.name, holder=lease.holder, term=lease.term):
            raise LeaseLostError(f"lease {lease.name} of term {lease.term} is not held by {lease.holder} any more")

    def _wake(self, write: Write) -> None:
        for job_id, seq in write.newest.items():
            self._changes.publish(job_id, seq)
        for one in write.left:
            self._changes.tell(one)
        for job_id in write.catalogued:
            self._changes.tell_catalogued(job_id)
        for job_id in write.deleted:
            self._changes.forget(job_id)
        if write.is_queue_changed:
            self._changes.jobs.set()
        if write.is_token_changed:
            self._changes.tokens_edition += 1
