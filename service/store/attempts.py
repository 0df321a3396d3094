"""Attempts: one gang's life each, numbered and fenced before anything is started."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import insert, null, select

from service.states import State
from service.store.database import Database
from service.store.job_rows import read_attempts
from service.store.lifecycle import Change, close_attempt, enter
from service.store.records import Attempt
from service.store.tables import attempts, jobs


class Attempts:
    """Queries about attempts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, job_id: str, reason: str, world_size: int) -> Attempt | None:
        """Take a queued job: next attempt, next fence, state `starting`, all in one transaction.

        Args:
            job_id: the job.
            reason: why this attempt: the first, or what ended the one before.
            world_size: ranks of the gang to be formed.
        Returns:
            The attempt; None where the job is not queued, so that nobody starts it twice.
        """
        async with self._database.write(job_id) as write:
            query = select(jobs.c.state, jobs.c.attempt, jobs.c.fence).where(jobs.c.id == job_id)
            row = (await write.connection.execute(query)).one_or_none()
            if row is None or row.state != State.QUEUED:
                return None
            now = datetime.now(UTC)
            attempt = Attempt(job_id, row.attempt + 1, row.fence + 1, reason, now, None, world_size)
            await close_attempt(write, job_id, now)
            await write.connection.execute(insert(attempts).values(**vars(attempt)))
            change = Change(State.STARTING, reason)
            new = {"attempt": attempt.number, "fence": attempt.fence, "world_size": world_size}
            await enter(write, job_id, change, **new, resize_to=null(), resize_why=null())
        return attempt

    async def of(self, job_id: str) -> list[Attempt]:
        """Return a job's attempts, oldest first."""
        return (await self.of_jobs([job_id]))[job_id]

    async def of_jobs(self, job_ids: Sequence[str]) -> dict[str, list[Attempt]]:
        """Return the attempts of each of the jobs, oldest first."""
        async with self._database.look() as snapshot:
            return await read_attempts(snapshot, job_ids)
