"""PostgreSQL: any number of controllers on one database. Owns the connections, how writers exclude each other and who wakes whom.

A write excludes the others of its scope (mostly a job) by an advisory lock that ends with the transaction, however it ends. Who is to be
woken is sent by NOTIFY in the same transaction; every controller listens on a connection of its own.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from sqlalchemy import event, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from service.store.changes import Changes
from service.store.errors import DatabaseError
from service.store.lending import transaction
from service.store.session import Write
from service.store.snapshot import SessionSnapshot

NUM_WRITERS: Final = 8
NUM_READERS: Final = 8
CONNECT_TIMEOUT_S: Final = 5
STATEMENT_TIMEOUT_MS: Final = 30_000
ABANDONED_TIMEOUT_MS: Final = 10_000
"""A controller that is stopped in the middle of a transaction must not hold its locks for longer."""
RELISTEN_S: Final = 1.0
CHANNEL: Final = "syncbn"
MOST_JOBS_SAID: Final = 50
"""A notification holds 8,000 bytes at most; one that would name more jobs wakes everybody."""

_LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtextextended(:scope, 0))")
_NOTIFY: Final = text("SELECT pg_notify(:channel, :payload)")

log = structlog.get_logger()


class PostgresBackend:
    """The two engines and the listener. See Backend."""

    is_shared = True

    def __init__(self, url: URL, changes: Changes) -> None:
        """Connect to nothing yet.

        Args:
            url: `postgresql://user@host:port/database`; the password may come from libpq's usual places instead.
            changes: told of what other controllers store, while `listen` runs.
        Raises:
            DatabaseError: the driver is not installed.
        """
        try:
            import psycopg  # noqa: F401 - the extra is looked for before the first query
        except ImportError as error:
            raise DatabaseError("PostgreSQL needs the package psycopg, which is not installed: pip install 'syncbn[postgres]'") from error
        driver = url.set(drivername="postgresql+psycopg")
        self._changes = changes
        self._writer = _engine(driver, NUM_WRITERS, isolation="READ COMMITTED", is_readonly=False)
        self.reader = _engine(driver, NUM_READERS, isolation="REPEATABLE READ", is_readonly=True)
        self._listener = asyncio.create_task(self._listen(url.set(drivername="postgresql").render_as_string(hide_password=False)))

    @asynccontextmanager
    async def write(self, scope: str, *, is_alone: bool) -> AsyncIterator[Write]:  # noqa: ARG002 - the database keeps each by itself
        """See Backend."""
        async with transaction(self._writer, self.is_away) as session:
            await session.execute(_LOCK, [{"scope": scope}])
            write = Write(session, SessionSnapshot(session))
            yield write
            await _announce(write)

    def look(self) -> None:
        """See Backend. What a query costs here is mostly the way to the server and back."""

    def is_away(self, error: BaseException | None) -> bool:
        """See Backend.

        SQLSTATE classes 08 (connection), 53 (no resources) and 57 (ended by the server); None where there was no answer at all.
        """
        state = getattr(error, "sqlstate", "")
        return state is None or state[:2] in {"08", "53", "57"}

    async def close(self) -> None:
        """See Backend."""
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        await self.reader.dispose()
        await self._writer.dispose()

    async def _listen(self, conninfo: str) -> None:
        """Pass on what other controllers say. After every silence all readers are woken: what was said meanwhile is not known."""
        import psycopg

        is_lost = False
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)
                async with connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    self._changes.wake_all()
                    is_lost = False
                    async for notice in connection.notifies():
                        self._hear(json.loads(notice.payload))
            except (psycopg.Error, OSError) as error:
                if not is_lost:
                    log.warning("database_listener_lost", error=str(error))
                is_lost = True
            await asyncio.sleep(RELISTEN_S)

    def _hear(self, said: dict[str, Any]) -> None:
        if said.get("all"):
            self._changes.wake_all()
            return
        for job_id, seq in said["newest"].items():
            self._changes.publish(job_id, seq)
        for job_id in said["deleted"]:
            self._changes.forget(job_id)
        if said["queue"]:
            self._changes.jobs.set()


async def _announce(write: Write) -> None:
    if not (write.newest or write.deleted or write.is_queue_changed):
        return
    said = {"newest": write.newest, "deleted": sorted(write.deleted), "queue": write.is_queue_changed}
    payload = json.dumps(said if len(write.newest) + len(write.deleted) <= MOST_JOBS_SAID else {"all": True})
    await write.connection.execute(_NOTIFY, [{"channel": CHANNEL, "payload": payload}])


def _engine(url: URL, size: int, *, isolation: Any, is_readonly: bool) -> AsyncEngine:
    engine = create_async_engine(
        url, pool_size=size, max_overflow=0, pool_timeout=CONNECT_TIMEOUT_S, pool_pre_ping=True, isolation_level=isolation,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "syncbn"},
        execution_options={"postgresql_readonly": is_readonly},
    )  # fmt: skip

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = {STATEMENT_TIMEOUT_MS}")
            cursor.execute(f"SET idle_in_transaction_session_timeout = {ABANDONED_TIMEOUT_MS}")
        connection.commit()

    return engine
