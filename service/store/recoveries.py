"""Recoveries: each is a `recovery` event, stored before anything is done; so their number outlives every controller."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select

from service.states import State
from service.store.database import Database
from service.store.journal import Entry, append
from service.store.lifecycle import Change, enter
from service.store.tables import events, jobs
from worker.contract import EventType

_RECOVERABLE = frozenset({State.STARTING, State.RUNNING, State.RECOVERING, State.PAUSING})


class Recoveries:
    """Queries about recoveries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def used(self, job_id: str) -> int:
        """Return how many recoveries a job has begun, over all its attempts."""
        mine = (events.c.job_id == job_id) & (events.c.type == EventType.RECOVERY.value)
        async with self._database.read() as connection:
            return int((await connection.execute(select(func.count()).where(mine))).scalar_one())

    async def begin(self, job_id: str, fence: int, reason: str, data: dict[str, Any]) -> bool:
        """Store that a recovery begins; a job that is running becomes `recovering` in the same transaction.

        Args:
            job_id: the job.
            fence: that of the attempt.
            reason: machine-readable, for the state.
            data: that of the event; its message is the state's too.
        Returns:
            False where nothing was stored: the fence is stale, or the job is in no state to be recovered.
        """
        async with self._database.write(job_id) as write:
            query = select(jobs.c.state, jobs.c.fence, jobs.c.attempt).where(jobs.c.id == job_id)
            row = (await write.connection.execute(query)).one_or_none()
            if row is None or row.fence != fence or State(row.state) not in _RECOVERABLE:
                return False
            await append(write, job_id, [Entry(at=datetime.now(UTC), type=EventType.RECOVERY, attempt=row.attempt, data=data)])
            if State(row.state) is State.RUNNING:
                await enter(write, job_id, Change(State.RECOVERING, reason, data["message"]))
        return True
