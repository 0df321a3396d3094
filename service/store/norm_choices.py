"""Jobs whose `norm.kind` is yet to be chosen. They are queued, and not in the sight of the scheduler: what they need is not stored yet."""

from sqlalchemy import delete, select, update

from service.states import State
from service.store.database import Database
from service.store.lifecycle import Change, enter
from service.store.queue import store_need
from service.store.tables import jobs, norm_choices
from worker.contract import NORMS, JobSpec


class NormChoices:
    """Queries about norms to be chosen."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self) -> list[str]:
        """Return the jobs that wait for a choice, oldest first."""
        async with self._database.read() as connection:
            return list((await connection.execute(select(norm_choices.c.job_id).order_by(norm_choices.c.job_id))).scalars())

    async def close(self, job_id: str) -> None:
        """Forget that a job waited for a choice."""
        async with self._database.write(job_id) as write:
            await write.connection.execute(delete(norm_choices).where(norm_choices.c.job_id == job_id))

    async def settle(self, job_id: str, kind: str, why: str) -> None:
        """Give a queued job its norm, once, record why as a transition, and let the scheduler see it."""
        async with self._database.write(job_id) as write:
            query = select(jobs.c.spec).join(norm_choices, norm_choices.c.job_id == jobs.c.id)
            row = (await write.connection.execute(query.where(jobs.c.id == job_id, jobs.c.state == State.QUEUED.value))).one_or_none()
            if row is None:
                return
            document = row.spec | {"norm": row.spec["norm"] | {"kind": kind, "args": NORMS[kind].args().model_dump(mode="json")}}
            await write.connection.execute(delete(norm_choices).where(norm_choices.c.job_id == job_id))
            await write.connection.execute(update(jobs).where(jobs.c.id == job_id).values(spec=document))
            await store_need(write, job_id, JobSpec.model_validate(document))
            await enter(write, job_id, Change(State.QUEUED, "norm_chosen", why))
            write.is_queue_changed = True
