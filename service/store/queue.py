"""The queue as the scheduler reads it: what each job asks for and what each live one holds, without their specs."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from sqlalchemy import BigInteger, RowMapping, Select, Text, and_, func, or_, select, type_coerce

from service.room import Bundle
from service.scheduling import Growth, Held, Need
from service.states import HOLDS_GANG, State
from service.store.database import Database
from service.store.session import Write
from service.store.tables import job_labels, jobs, needs, transitions
from worker.contract import JobSpec
from worker.contract.spec import ResourceSpec

PREEMPTED = "preempted"
PAUSE_REQUESTED = "pause_requested"
_LEAVING = frozenset({State.PAUSING, State.CANCELLING})
_COLUMNS = (
    jobs.c.id,
    jobs.c.state,
    jobs.c.priority,
    type_coerce(jobs.c.created_at, BigInteger).label("created_us"),
    jobs.c.started_at,
    jobs.c.world_size,
    jobs.c.resize_to,
    jobs.c.resize_why,
    type_coerce(jobs.c.labels, Text).label("labels"),
    jobs.c.reason,
    jobs.c.message,
    needs.c.min_workers,
    needs.c.max_workers,
    needs.c.cpus_per_worker,
    needs.c.gpus_per_worker,
    needs.c.timeout_s,
)
_LONGEST_S = 36_500 * 86_400.0
_IN_ORDER = (jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)


@dataclass(frozen=True)
class Queued:
    """A queued job: what it asks for, and what was last said about why it waits."""

    need: Need
    created_us: int
    """Microseconds since 1970."""
    reason: str
    message: str


@dataclass(frozen=True)
class QueueCap:
    """At most so many queued jobs with a label of this value."""

    label: str
    value: str
    queued_jobs: int


class QueueFullError(Exception):
    """As many jobs are queued as the cap allows."""

    def __init__(self, cap: QueueCap) -> None:
        super().__init__(f"{cap.queued_jobs} jobs with label {cap.label}={cap.value} are queued")
        self.cap = cap


class Queue:
    """Queries about who waits and who holds what."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pages(self, size: int) -> AsyncIterator[list[Queued]]:
        """Read the queue in the order in which jobs may start: priority, then age. Each page is what the queue is when it is read."""
        last: Queued | None = None
        while True:
            page = await self._page(last, size)
            if page:
                yield page
            if len(page) < size:
                return
            last = page[-1]

    async def held(self) -> list[Held]:
        """Return what every live job holds."""
        query = _rows().where(jobs.c.state.in_([state.value for state in HOLDS_GANG]))
        return [_held(row) for row in await self._fetch(query)]

    async def preempted(self) -> list[str]:
        """Return the jobs that have come to rest because they were paused to make room, and not because a user asked."""
        pausings = transitions.alias()
        last = select(func.max(pausings.c.number)).where(pausings.c.job_id == jobs.c.id, pausings.c.state == State.PAUSING.value)
        query = select(jobs.c.id).join(transitions, transitions.c.job_id == jobs.c.id)
        is_meant = (transitions.c.number == last.correlate(jobs).scalar_subquery()) & (transitions.c.reason == PREEMPTED)
        # Preempted before, and paused by a user while it waited: it stays.
        is_left_alone = jobs.c.reason == PAUSE_REQUESTED
        return [row["id"] for row in await self._fetch(query.where(jobs.c.state == State.PAUSED.value, is_meant, ~is_left_alone))]

    async def _page(self, last: Queued | None, size: int) -> list[Queued]:
        waiting = _rows().where(jobs.c.state == State.QUEUED.value).order_by(*_IN_ORDER)
        if last is None:
            return [_queued(row) for row in await self._fetch(waiting.limit(size))]
        # Two queries, because each is one range of the index, and their disjunction is none.
        created, at, priority = type_coerce(jobs.c.created_at, BigInteger), last.created_us, last.need.priority
        later = or_(created > at, and_(created == at, jobs.c.id > last.need.job_id))
        alike = waiting.where(jobs.c.priority == priority, created >= at, later)
        found = await self._fetch(alike.limit(size))
        if len(found) < size:
            found += await self._fetch(waiting.where(jobs.c.priority < priority).limit(size - len(found)))
        return [_queued(row) for row in found]

    async def _fetch(self, query: Select[Any]) -> list[RowMapping]:
        async with self._database.read() as connection:
            return list((await connection.execute(query)).mappings())


async def store_need(write: Write, job_id: str, spec: JobSpec) -> None:
    """Store what a new job asks for."""
    await write.connection.execute(
        needs.insert().values(
            job_id=job_id,
            min_workers=spec.resources.min_workers,
            max_workers=spec.resources.max_workers,
            cpus_per_worker=spec.resources.cpus_per_worker,
            gpus_per_worker=spec.resources.gpus_per_worker,
            timeout_s=spec.timeout_s,
        )
    )


async def change_need(write: Write, job_id: str, resources: ResourceSpec) -> None:
    """Store another number of workers that a job asks for."""
    numbers = {"min_workers": resources.min_workers, "max_workers": resources.max_workers}
    await write.connection.execute(needs.update().where(needs.c.job_id == job_id).values(**numbers))


async def require_place(write: Write, cap: QueueCap) -> None:
    """Raise QueueFullError where one more queued job would be too many."""
    is_meant = (job_labels.c.key == cap.label) & (job_labels.c.value == cap.value) & (jobs.c.state == State.QUEUED.value)
    found = select(jobs.c.id).join(job_labels, job_labels.c.job_id == jobs.c.id).where(is_meant).limit(cap.queued_jobs)
    number = (await write.connection.execute(select(func.count()).select_from(found.subquery()))).scalar_one()
    if number >= cap.queued_jobs:
        raise QueueFullError(cap)


def _rows() -> Select[Any]:
    return select(*_COLUMNS).join(needs, needs.c.job_id == jobs.c.id)


# Thousands of rows a round, and few different values among them.
@lru_cache(maxsize=4096)
def _bundle(cpus: float, gpus: int) -> Bundle:
    return Bundle(cpus, gpus)


@lru_cache(maxsize=4096)
def _labels(text: str) -> Mapping[str, str]:
    return MappingProxyType(json.loads(text))


@lru_cache(maxsize=4096)
def _timeout(seconds: float) -> timedelta:
    # As far as anybody could wait; a user may write 1e300.
    return timedelta(seconds=min(seconds, _LONGEST_S))


def _queued(row: RowMapping) -> Queued:
    need = Need(
        job_id=row["id"],
        min_workers=row["min_workers"],
        max_workers=row["max_workers"],
        bundle=_bundle(row["cpus_per_worker"], row["gpus_per_worker"]),
        timeout=_timeout(row["timeout_s"]),
        priority=row["priority"],
        labels=_labels(row["labels"]),
    )
    return Queued(need, row["created_us"], row["reason"], row["message"])


def _held(row: RowMapping) -> Held:
    state = State(row["state"])
    is_settled = state is State.RUNNING and row["resize_to"] is None
    return Held(
        job_id=row["id"],
        # What it is about to give back is not free yet, what it is about to get is not free any more.
        workers=max(row["world_size"], row["resize_to"] or 0),
        growth=Growth(row["min_workers"], row["max_workers"], is_asked=row["resize_why"] is not None) if is_settled else None,
        bundle=_bundle(row["cpus_per_worker"], row["gpus_per_worker"]),
        priority=row["priority"],
        labels=_labels(row["labels"]),
        started_at=row["started_at"],
        timeout=_timeout(row["timeout_s"]),
        is_pausable=state is State.RUNNING,
        is_leaving=state in _LEAVING,
    )
