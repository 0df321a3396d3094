"""The store as one thing: opened, used by noun, closed."""

import sys
from types import TracebackType
from typing import Self

from service.store.attempts import Attempts
from service.store.bundles import Bundles
from service.store.changes import Changes
from service.store.checkpoints import Checkpoints
from service.store.comparisons import Comparisons
from service.store.database import Database
from service.store.events import Events
from service.store.jobs import Jobs
from service.store.leases import Leases
from service.store.logs import Logs
from service.store.metrics import Metrics
from service.store.migration import migrate
from service.store.norm_choices import NormChoices
from service.store.prunings import Prunings
from service.store.queue import Queue
from service.store.records import Lease
from service.store.recoveries import Recoveries
from service.store.resizes import Resizes
from service.store.tokens import Tokens
from service.store.usage import Usage


class Store:
    """Everything the controller remembers. Made by `open`, used from one event loop."""

    def __init__(self, database: Database, changes: Changes, max_log_bytes: int) -> None:
        self._database = database
        self._max_log_bytes = max_log_bytes
        self.changes = changes
        self.jobs = Jobs(database)
        self.queue = Queue(database)
        self.attempts = Attempts(database)
        self.events = Events(database, max_log_bytes)
        self.logs = Logs(database)
        self.metrics = Metrics(database)
        self.checkpoints = Checkpoints(database)
        self.comparisons = Comparisons(database)
        self.norm_choices = NormChoices(database)
        self.recoveries = Recoveries(database)
        self.resizes = Resizes(database)
        self.tokens = Tokens(database)
        self.bundles = Bundles(database)
        self.leases = Leases(database)
        self.prunings = Prunings(database)
        self.usage = Usage(database)

    @classmethod
    async def open(cls, database_url: str, *, max_log_bytes: int = sys.maxsize) -> Self:
        """Take the database for this process and bring it to the present schema.

        Args:
            database_url: `sqlite:///path/to/syncbn.db`, or `postgresql://user@host:port/database`.
            max_log_bytes: how much of a job's log is kept; beyond it the oldest lines go.
        Raises:
            DatabaseError: neither of them, held by another process, away, or written by a newer version.
        """
        changes = Changes()
        database = Database.connect(database_url, changes)
        try:
            await migrate(database)
            if not database.is_shared:
                await Leases(database).clear()
        except BaseException:
            await database.close()
            raise
        return cls(database, changes, max_log_bytes)

    def under(self, lease: Lease) -> "Store":
        """Return the same store, every write of which raises LeaseLostError once the lease is lost."""
        return Store(self._database.under(lease), self.changes, self._max_log_bytes)

    async def ping(self) -> None:
        """Ask the database for anything.

        Raises:
            DatabaseAwayError: it does not answer.
        """
        await self.leases.held()

    async def close(self) -> None:
        """Close every connection. Afterwards another process may open the database."""
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
