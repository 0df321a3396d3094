"""The store as one thing: opened, used by noun, closed."""

from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from service.store.attempts import Attempts
from service.store.changes import Changes
from service.store.checkpoints import Checkpoints
from service.store.database import Database, DatabaseError
from service.store.events import Events
from service.store.jobs import Jobs
from service.store.metrics import Metrics
from service.store.migration import migrate
from service.store.recoveries import Recoveries
from service.store.tokens import Tokens


class Store:
    """Everything the controller remembers. Made by `open`, used from one event loop."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database = database
        self.changes = changes
        self.jobs = Jobs(database, changes)
        self.attempts = Attempts(database)
        self.events = Events(database)
        self.metrics = Metrics(database)
        self.checkpoints = Checkpoints(database)
        self.recoveries = Recoveries(database)
        self.tokens = Tokens(database)

    @classmethod
    async def open(cls, database_url: str) -> Self:
        """Take the database for this process and bring it to the present schema.

        Args:
            database_url: `sqlite:///path/to/syncbn.db`.
        Raises:
            DatabaseError: not SQLite in a file, held by another process, or written by a newer version.
        """
        changes = Changes()
        database = Database.connect(database_url, changes)
        try:
            await migrate(database)
        except BaseException:
            await database.close()
            raise
        return cls(database, changes)

    async def ping(self) -> None:
        """Ask the database for anything.

        Raises:
            DatabaseError: it does not answer.
        """
        try:
            await self.tokens.find("")
        except (SQLAlchemyError, OSError) as error:
            raise DatabaseError(f"the database does not answer: {error}") from error

    async def close(self) -> None:
        """Close every connection. Afterwards another process may open the database."""
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
