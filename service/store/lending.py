"""Lends connections of SQLAlchemy's, a transaction each, and says in our words when the database is away."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from service.store.errors import DatabaseAwayError
from service.store.session import Session

IsAway = Callable[[BaseException | None], bool]
"""Whether an error of the driver's says that the database failed, rather than the statement."""


@asynccontextmanager
async def transaction(engine: AsyncEngine, is_away: IsAway) -> AsyncIterator[Session]:
    """Lend a connection: committed at the end, rolled back when it is given back after any error.

    Raises:
        DatabaseAwayError: the database does not answer.
    """
    session = Session(engine)
    with away_said(is_away):
        await session.start()
        try:
            yield session
            await session.commit()
        finally:
            await session.close()


@contextmanager
def away_said(is_away: IsAway) -> Iterator[None]:
    """Turn what SQLAlchemy raises where the database does not answer into DatabaseAwayError."""
    try:
        yield
    except (PoolTimeoutError, OSError) as error:
        raise DatabaseAwayError(f"the database gives no connection: {error}") from error
    except DBAPIError as error:
        if error.connection_invalidated or is_away(error.orig):
            raise DatabaseAwayError(f"the database does not answer: {error.orig}") from error
        raise
