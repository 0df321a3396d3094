"""An open transaction, and what a backend must offer so that transactions can be opened. Knows no database in particular."""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar, cast

from sqlalchemy import CursorResult, Executable
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from service.store.query import Prepared, Snapshot

T = TypeVar("T")


class Session:
    """A transaction of SQLAlchemy's. A caller that is cancelled waits for the statement at hand, so that the connection stays sound."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Borrow nothing yet: the connection is had with the first statement, or with `start`."""
        self._connection = engine.connect()
        self._is_started = False
        self.dialect_name = engine.dialect.name
        """Which SQL is spoken: `sqlite` or `postgresql`."""
        self._has_no_limits = has_no_limits(engine.dialect.name)

    async def start(self) -> None:
        """Borrow the connection, where that is not done yet."""
        if self._is_started:
            return
        try:
            await finished(self._connection.start())
        except asyncio.CancelledError:
            await finished(self._connection.close())
            raise
        self._is_started = True

    async def execute(self, statement: Executable, rows: Sequence[Mapping[str, Any]] | None = None) -> CursorResult[*tuple[Any, ...]]:
        """Run a statement, once or for each row of values."""
        await self.start()
        return await finished(self._connection.execute(statement, rows), is_begun_here=self._has_no_limits)

    async def run_sync(self, function: Callable[[Connection], T]) -> T:
        """Run a function that takes SQLAlchemy's synchronous connection."""
        await self.start()
        return await finished(self._connection.run_sync(function), is_begun_here=self._has_no_limits)

    async def commit(self) -> None:
        """Commit."""
        await finished(self._connection.commit(), is_begun_here=self._has_no_limits)

    async def close(self) -> None:
        """Give the connection back, where it was had; what is not committed is rolled back."""
        if self._is_started:
            await finished(self._connection.close(), is_begun_here=self._has_no_limits)


@dataclass(frozen=True)
class StateLeft:
    """A job was in a state, and is in another one now."""

    job_id: str
    state: str
    reason: str
    """Why it was in that state."""
    since: datetime
    until: datetime
    to: str


@dataclass
class Write:
    """One write transaction, and whom to wake once it is committed, in this controller and in all others."""

    connection: Session
    """Runs whatever SQLAlchemy can say."""
    prepared: Prepared
    """Runs what was built once, in the same transaction, at a tenth of the cost."""
    newest: dict[str, int] = field(default_factory=dict)
    """By job, the number of its newest event."""
    deleted: set[str] = field(default_factory=set)
    """Jobs that are gone."""
    catalogued: set[str] = field(default_factory=set)
    """Jobs of which checkpoints were listed."""
    left: list[StateLeft] = field(default_factory=list)
    """The states that jobs have left."""
    is_queue_changed: bool = False
    """A job was submitted, or stands elsewhere in the queue."""
    is_token_changed: bool = False
    """A token was made, or is admitted no longer or not as long."""


class Backend(Protocol):
    """One kind of database."""

    reader: AsyncEngine
    is_shared: bool
    """Whether several controllers may use the database at once."""

    def write(self, scope: str, *, is_alone: bool) -> AbstractAsyncContextManager[Write]:
        """Begin a transaction that excludes every other write of the same scope. Commit at the end, roll back on any error.

        With the commit the other controllers are told whom to wake. See Database.write.
        """

    def look(self) -> AbstractAsyncContextManager[Snapshot] | None:
        """Begin to read past SQLAlchemy; None where a connection of its own must do."""

    def is_away(self, error: BaseException | None) -> bool:
        """Return whether an error of the driver's says that the database failed, rather than the statement."""

    async def close(self) -> None:
        """Close readers, then writers, then let another process have the database."""


def has_no_limits(dialect_name: str) -> bool:
    """Return whether a dialect's driver sets no time limits of asyncio's. Ours for SQLite does not."""
    return dialect_name == "sqlite"


@types.coroutine
def _rest(work: Coroutine[Any, Any, T], first: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that waits for `first`."""
    waits_for = first
    try:
        while True:
            try:
                value = yield waits_for
            except BaseException as error:  # noqa: BLE001 - handed on as it is, like `yield from` does
                waits_for = work.throw(error)
            else:
                waits_for = work.send(value)
    except StopIteration as done:
        return cast("T", done.value)


async def finished(work: Coroutine[Any, Any, T], *, is_begun_here: bool = False) -> T:
    """Wait for work to its end, also when cancelled meanwhile; then the cancellation goes on.

    SQLAlchemy gives up a connection whose statement is cancelled, and a thread may then keep it, and its lock on the database.

    Args:
        work: what is to be done.
        is_begun_here: do without a task what does not wait at all, which is most of what SQLite is asked. Only for work without time
            limits of asyncio's: they remember the task in which they were set, which would be the caller's.
    """
    if is_begun_here:
        try:
            first = work.send(None)
        except StopIteration as done:
            return cast("T", done.value)
        work = _rest(work, first)
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
