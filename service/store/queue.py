"""The queue as the scheduler reads it: what each job asks for and what each live one holds, without their specs."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from sqlalchemy import BigInteger, RowMapping, Select, Text, and_, func, or_, select, type_coerce

from service.quotas import Quota
from service.room import Bundle
from service.scheduling import Growth, Held, Need
from service.states import HOLDS_GANG, State
from service.store.database import Database
from service.store.lifecycle import Change, enter
from service.store.query import Command
from service.store.session import Write
from service.store.tables import jobs, needs, transitions
from service.store.usage import members_of
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
    jobs.c.project,
    jobs.c.submitter,
    jobs.c.running_since,
    jobs.c.ran_us,
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
_INSERT = Command(needs.insert())
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
    """At most so many queued jobs of one group of a quota."""

    quota: Quota
    group: str
    queued_jobs: int


class QueueFullError(Exception):
    """As many jobs are queued as the cap allows."""

    def __init__(self, cap: QueueCap) -> None:
        group = f"label {cap.quota.label}={cap.group}" if cap.quota.label else f"{cap.quota.by} {cap.group}"
        super().__init__(f"{cap.queued_jobs} jobs with {group} are queued")
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

    async def is_preempted(self, job_id: str) -> bool:
        """Return whether a job is being paused, or has been, only to make room."""
        return bool(await self._fetch(_preempted().where(jobs.c.id == job_id)))

    async def requeue_preempted(self) -> list[str]:
        """Queue again the jobs that have come to rest only to make room; return those that were."""
        resting = [row["id"] for row in await self._fetch(_preempted().where(jobs.c.state == State.PAUSED.value))]
        return [job_id for job_id in resting if await self._requeue(job_id)]

    async def _requeue(self, job_id: str) -> bool:
        async with self._database.write(job_id) as write:
            # Looked at again: a user may have paused it meanwhile, or cancelled it.
            resting = _preempted().where(jobs.c.id == job_id, jobs.c.state == State.PAUSED.value)
            if (await write.connection.execute(resting)).one_or_none() is None:
                return False
            await enter(write, job_id, Change(State.QUEUED, PREEMPTED, "waits for room again"))
        return True

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
    row = {
        "job_id": job_id,
        "min_workers": spec.resources.min_workers,
        "max_workers": spec.resources.max_workers,
        "cpus_per_worker": spec.resources.cpus_per_worker,
        "gpus_per_worker": spec.resources.gpus_per_worker,
        "timeout_s": spec.timeout_s,
    }
    await write.prepared.run(_INSERT, [row])


async def change_need(write: Write, job_id: str, resources: ResourceSpec) -> None:
    """Store another number of workers that a job asks for."""
    numbers = {"min_workers": resources.min_workers, "max_workers": resources.max_workers}
    await write.connection.execute(needs.update().where(needs.c.job_id == job_id).values(**numbers))


async def require_place(write: Write, cap: QueueCap) -> None:
    """Raise QueueFullError where one more queued job would be too many."""
    group, members = members_of(cap.quota)
    is_meant = (group == cap.group) & (jobs.c.state == State.QUEUED.value)
    found = select(jobs.c.id).select_from(members).where(is_meant).limit(cap.queued_jobs)
    number = (await write.connection.execute(select(func.count()).select_from(found.subquery()))).scalar_one()
    if number >= cap.queued_jobs:
        raise QueueFullError(cap)


def _preempted() -> Select[Any]:
    """Select the jobs that were paused last to make room, and not by a user, not even afterwards."""
    pausings = transitions.alias()
    last = select(func.max(pausings.c.number)).where(pausings.c.job_id == jobs.c.id, pausings.c.state == State.PAUSING.value)
    is_meant = (transitions.c.number == last.correlate(jobs).scalar_subquery()) & (transitions.c.reason == PREEMPTED)
    query = select(jobs.c.id).join(transitions, transitions.c.job_id == jobs.c.id)
    return query.where(is_meant, jobs.c.state.in_([State.PAUSING.value, State.PAUSED.value]), jobs.c.reason != PAUSE_REQUESTED)


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


def _left(row: RowMapping) -> timedelta:
    """Return how long a job may run yet, as from the beginning of its present attempt."""
    return _timeout(max(row["timeout_s"] - row["ran_us"] / 1e6, 0.0))


def _queued(row: RowMapping) -> Queued:
    need = Need(
        job_id=row["id"],
        min_workers=row["min_workers"],
        max_workers=row["max_workers"],
        bundle=_bundle(row["cpus_per_worker"], row["gpus_per_worker"]),
        timeout=_left(row),
        priority=row["priority"],
        labels=_labels(row["labels"]),
        project=row["project"],
        submitter=row["submitter"],
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
        running_since=row["running_since"],
        timeout=_left(row),
        is_pausable=state is State.RUNNING,
        is_leaving=state in _LEAVING,
        project=row["project"],
        submitter=row["submitter"],
    )
