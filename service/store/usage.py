"""What the groups of a quota hold now: jobs, workers and GPUs, places in the queue, bytes of checkpoints."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, func, select

from service.quotas import Quota
from service.states import HOLDS_GANG, State
from service.store.database import Database
from service.store.tables import checkpoints, job_labels, jobs, needs


@dataclass
class Used:
    """What one group uses."""

    running_jobs: int = 0
    workers: int = 0
    gpus: int = 0
    queued_jobs: int = 0
    storage_bytes: int = 0


class Usage:
    """Queries about what is used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, quota: Quota) -> dict[str, Used]:
        """Return what each group of a quota uses; of a quota of one value, what that does."""
        found: dict[str, Used] = {} if quota.value is None else {quota.value: Used()}
        group, members = members_of(quota)
        sums = (func.count(), func.sum(jobs.c.world_size), func.sum(jobs.c.world_size * needs.c.gpus_per_worker))
        holding = select(group, *sums).select_from(members.join(needs, needs.c.job_id == jobs.c.id))
        held = holding.where(jobs.c.state.in_([state.value for state in HOLDS_GANG]))
        queued = select(group, func.count()).select_from(members).where(jobs.c.state == State.QUEUED.value)
        async with self._database.read() as session:
            for name, num_jobs, workers, gpus in await session.execute(_grouped(held, quota, group)):
                found.setdefault(name, Used()).running_jobs = num_jobs
                found[name].workers, found[name].gpus = int(workers), int(gpus)
            for name, number in await session.execute(_grouped(queued, quota, group)):
                found.setdefault(name, Used()).queued_jobs = number
        for name, size in (await self.stored(quota)).items():
            found.setdefault(name, Used()).storage_bytes = size
        return found

    async def stored(self, quota: Quota) -> dict[str, int]:
        """Return the bytes of the checkpoints of each group of a quota."""
        group, members = members_of(quota)
        query = select(group, func.sum(checkpoints.c.size_bytes)).select_from(members.join(checkpoints, checkpoints.c.job_id == jobs.c.id))
        async with self._database.read() as session:
            return {name: int(size) for name, size in await session.execute(_grouped(query, quota, group))}

    async def groups_with(self, quota: Quota, project: str) -> set[str]:
        """Return the groups of a quota that a project has jobs in, ended ones too."""
        group, members = members_of(quota)
        query = select(group).select_from(members).where(jobs.c.project == project)
        async with self._database.read() as session:
            return set((await session.execute(_grouped(query, quota, group))).scalars())


def members_of(quota: Quota) -> tuple[ColumnElement[str], FromClause]:
    """Return the column with the group of a job, and the jobs that are in any, joined with what has it."""
    if quota.by == "label":
        is_meant = (job_labels.c.job_id == jobs.c.id) & (job_labels.c.key == quota.label)
        return job_labels.c.value, jobs.join(job_labels, is_meant)
    return (jobs.c.project if quota.by == "project" else jobs.c.submitter), jobs


def _grouped(query: Select[*tuple[Any, ...]], quota: Quota, group: ColumnElement[str]) -> Select[*tuple[Any, ...]]:
    if quota.value is not None:
        query = query.where(group == quota.value)
    return query.group_by(group)
