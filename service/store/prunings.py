"""Dropping what ended jobs leave behind: each step a small transaction of its own, so that nobody waits long for the database.

What is old is decided by the database's clock. A reader in the midst of what is dropped goes on: where events were, one of type `gap`
says which, and a line among the log says how many lines. Files are elsewhere.
"""

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Final

from sqlalchemy import ColumnElement, Text, delete, exists, func, select, true, type_coerce, update

from service.states import TERMINAL
from service.store.clock import days_ago
from service.store.database import Database
from service.store.log_quota import CHUNK, LINE_BYTES, drop_lines
from service.store.session import Write
from service.store.tables import checkpoints, comparisons, events, jobs, metric_points, metric_rolls, variants
from worker.contract import EventType

_PAGE: Final = 100
_TERMINAL: Final = [state.value for state in TERMINAL]
_POLICY: Final = "by the operator's retention policy"


class Part(StrEnum):
    """What can be dropped of a job."""

    LOGS = "logs"
    EVENTS = "events"
    METRICS = "metrics"
    CHECKPOINTS = "checkpoints"
    JOB = "job"


class Prunings:
    """Queries about what is old, and statements that drop it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def old(self, part: Part, days: int) -> AsyncIterator[str]:
        """Yield the jobs that ended more than so many days ago and still have the part, oldest first."""
        last = ""
        while True:
            query = select(jobs.c.id).where(jobs.c.id > last, jobs.c.state.in_(_TERMINAL), jobs.c.finished_at < days_ago(days), _has(part))
            async with self._database.read() as session:
                page = list((await session.execute(query.order_by(jobs.c.id).limit(_PAGE))).scalars())
            for job_id in page:
                yield job_id
            if len(page) < _PAGE:
                return
            last = page[-1]

    async def needed(self) -> set[str]:
        """Return the jobs from whose checkpoints a job starts that has not ended."""
        is_live = jobs.c.state.not_in(_TERMINAL)
        names_one = type_coerce(jobs.c.spec, Text).contains('"initialize_from":"job_', autoescape=True)
        async with self._database.read() as session:
            specs = (await session.execute(select(jobs.c.spec).where(is_live, names_one))).scalars()
            return {str(spec["initialize_from"]).partition("/")[0] for spec in specs}

    async def drop_logs(self, job_id: str) -> bool:
        """Drop the oldest of a job's log lines; return whether there are more."""
        mine = (events.c.job_id == job_id) & (events.c.type == EventType.LOG.value)
        async with self._database.write(job_id) as write:
            freed = await drop_lines(write, job_id, CHUNK * LINE_BYTES, _POLICY)
            rest = (await write.connection.execute(select(events.c.seq).where(mine).limit(2))).scalars().all()
            is_more = len(rest) > 1
            await write.connection.execute(
                update(jobs).where(jobs.c.id == job_id).values(log_bytes=jobs.c.log_bytes - freed if is_more else 0)
            )
        return is_more

    async def drop_events(self, job_id: str) -> bool:
        """Drop the oldest of an ended job's events, `end` excepted; return whether there are more. The last dropped becomes the gap."""
        async with self._database.write(job_id) as write:
            last_seq = select(jobs.c.last_seq).where(jobs.c.id == job_id, jobs.c.state.in_(_TERMINAL)).scalar_subquery()
            mine = (events.c.job_id == job_id) & (events.c.seq < last_seq)
            seqs = (await write.connection.execute(select(events.c.seq).where(mine).order_by(events.c.seq).limit(CHUNK))).scalars().all()
            if seqs:
                await _leave_gap(write, job_id, seqs[-1])
            is_more = len(seqs) == CHUNK
            if not is_more:
                await write.connection.execute(update(jobs).where(jobs.c.id == job_id).values(log_bytes=0))
        return is_more

    async def drop_metrics(self, job_id: str) -> bool:
        """Drop the first points of a job's series; return whether there are more."""
        mine = metric_points.c.job_id == job_id
        order = (metric_points.c.name, metric_points.c.step)
        async with self._database.write(job_id) as write:
            # First: rolls without their points would be drawn, points without their rolls are read one by one.
            await write.connection.execute(delete(metric_rolls).where(metric_rolls.c.job_id == job_id))
            rows = (await write.connection.execute(select(*order).where(mine).order_by(*order).limit(CHUNK))).all()
            if rows:
                name, step = rows[-1]
                is_passed = (metric_points.c.name < name) | ((metric_points.c.name == name) & (metric_points.c.step <= step))
                await write.connection.execute(delete(metric_points).where(mine & is_passed))
        return len(rows) == CHUNK

    async def drop_comparisons(self, days: int) -> None:
        """Drop the comparisons that were begun more than so many days ago and have no job any more."""
        has_job = exists().where(variants.c.comparison_id == comparisons.c.id, variants.c.job_id == jobs.c.id)
        async with self._database.write("comparisons") as write:
            await write.connection.execute(delete(comparisons).where(comparisons.c.created_at < days_ago(days), ~has_job))


def _has(part: Part) -> ColumnElement[bool]:
    match part:
        case Part.LOGS:
            return jobs.c.log_bytes != 0
        case Part.EVENTS:
            # More than the gap and the end.
            return exists().where(events.c.job_id == jobs.c.id, events.c.seq < jobs.c.last_seq - 1)
        case Part.METRICS:
            return exists().where(metric_points.c.job_id == jobs.c.id)
        case Part.CHECKPOINTS:
            num = select(func.count()).select_from(checkpoints).where(checkpoints.c.job_id == jobs.c.id)
            return num.scalar_subquery() > 1
        case Part.JOB:
            return true()


async def _leave_gap(write: Write, job_id: str, last: int) -> None:
    """Drop the events up to `last`, and put what says so into its place."""
    mine = events.c.job_id == job_id
    await write.connection.execute(delete(events).where(mine & (events.c.seq < last)))
    message = f"events 1 to {last} were dropped {_POLICY}"
    said = {"first_seq": 1, "last_seq": last, "level": "warning", "message": message}
    gap = {"type": EventType.GAP.value, "attempt": None, "rank": None, "rank_seq": None, "data": said}
    await write.connection.execute(update(events).where(mine & (events.c.seq == last)).values(**gap))
