"""Resizes: what a user or the scheduler asks for, kept until the controller that looks after the job has done it.

Owns `resize_to` and `resize_why` of a job. `resize_to` says what its controller is to do now; a job that may become larger waits for the
scheduler to say so.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import null, select, update

from service.retrying import Why
from service.states import HOLDS_GANG, State
from service.store.database import Database
from service.store.journal import Entry, append
from service.store.queue import change_need
from service.store.tables import jobs
from worker.contract import EventType, JobSpec

_RESIZABLE = {
    Why.ASKED: frozenset({State.RUNNING}),
    Why.ROOM_RETURNED: frozenset({State.RUNNING}),
    Why.NODE_LOST: frozenset({State.STARTING, State.RUNNING, State.RECOVERING, State.PAUSING}),
}


class Resizes:
    """Queries about resizes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ask(self, job_id: str, state: State, resources: dict[str, Any]) -> bool:
        """Store the resources that a user wants a job to have.

        Args:
            job_id: the job.
            state: in which the caller has seen it.
            resources: the section of the spec, with the new number.
        Returns:
            False where nothing was stored: the job is in another state by now.
        """
        async with self._database.write(job_id) as write:
            query = select(jobs.c.state, jobs.c.spec, jobs.c.world_size).where(jobs.c.id == job_id)
            row = (await write.connection.execute(query)).one_or_none()
            if row is None or row.state != state.value:
                return False
            document = row.spec | {"resources": resources}
            wanted = JobSpec.model_validate(document).resources
            values: dict[str, Any] = {"spec": document}
            if state not in HOLDS_GANG:
                values |= {"world_size": wanted.min_workers}
            elif wanted.max_workers < row.world_size:
                values |= {"resize_to": wanted.max_workers, "resize_why": Why.ASKED.value}
            else:
                is_more = wanted.max_workers > row.world_size
                values |= {"resize_to": null(), "resize_why": Why.ASKED.value if is_more else null()}
            await write.connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))
            await change_need(write, job_id, wanted)
            write.is_queue_changed = True
        return True

    async def grant(self, job_id: str, workers: int) -> bool:
        """Let a running job become larger; return False where it does not run, or is being resized."""
        async with self._database.write(job_id) as write:
            query = select(jobs.c.resize_why).where(
                jobs.c.id == job_id, jobs.c.state == State.RUNNING.value, jobs.c.resize_to.is_(None), jobs.c.world_size < workers
            )
            row = (await write.connection.execute(query)).one_or_none()
            if row is None:
                return False
            values = {"resize_to": workers, "resize_why": row.resize_why or Why.ROOM_RETURNED.value}
            await write.connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))
        return True

    async def begin(self, job_id: str, fence: int, why: Why, data: dict[str, Any]) -> bool:
        """Store the event of a resize and the new number of ranks, before any rank is told.

        Args:
            job_id: the job.
            fence: that of the attempt.
            why: the reason.
            data: that of the event but for `why`; its message is the job's too.
        Returns:
            False where nothing was stored: the fence is stale, or the job is in no state to be resized.
        """
        async with self._database.write(job_id) as write:
            query = select(jobs.c.state, jobs.c.fence, jobs.c.attempt).where(jobs.c.id == job_id)
            row = (await write.connection.execute(query)).one_or_none()
            if row is None or row.fence != fence or State(row.state) not in _RESIZABLE[why]:
                return False
            event = Entry(at=datetime.now(UTC), type=EventType.RESIZE, attempt=row.attempt, data={**data, "why": why.value})
            await append(write, job_id, [event])
            values = {"world_size": data["new_world_size"], "message": data["message"], "resize_to": null(), "resize_why": null()}
            await write.connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))
        return True

    async def withdraw(self, job_id: str) -> None:
        """Forget what was to be done now; the scheduler may say it again."""
        async with self._database.write(job_id) as write:
            await write.connection.execute(update(jobs).where(jobs.c.id == job_id).values(resize_to=null()))
