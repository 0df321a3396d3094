"""Jobs: store, find, change state, edit, delete."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Select, bindparam, delete, func, insert, select, update

from service.scopes import DEFAULT_PROJECT
from service.states import State, is_allowed
from service.store.bundles import use_bundle
from service.store.database import Database
from service.store.idempotency import earlier_job, remember
from service.store.job_rows import job_of, read_attempts, read_job, read_page, read_transitions
from service.store.lifecycle import Change, begin, enter
from service.store.query import Command, stored
from service.store.queue import QueueCap, require_place, store_need
from service.store.records import Attempt, IdempotencyClaim, Job, Progress, Transition
from service.store.session import Write
from service.store.tables import job_labels, jobs, norm_choices, transitions
from worker.contract import JobSpec
from worker.contract.catalogue import AUTO_NORM

SUBMITTED = "submitted"
CHOOSING_NORM = "choosing_norm"
_INSERT: Final = Command(insert(jobs))
_INSERT_LABEL: Final = Command(insert(job_labels))


@dataclass(frozen=True)
class JobFilter:
    """Which jobs a list holds: in any of the states (all, where empty), with every one of the labels, of the project (all, where None), and
    with the words in name or id.
    """

    states: frozenset[State] = frozenset()
    labels: tuple[tuple[str, str], ...] = ()
    project: str | None = None
    words: str = ""


class Jobs:
    """Queries about jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        job_id: str,
        spec: JobSpec,
        claim: IdempotencyClaim | None = None,
        caps: Sequence[QueueCap] = (),
        *,
        project: str = DEFAULT_PROJECT,
        submitter: str = "",
    ) -> tuple[str, bool]:
        """Store a queued job, unless the same request has made one before.

        Returns:
            The job's id, and whether it is new.
        Raises:
            KeyReusedError: the key was used for a different request.
            QueueFullError: as many jobs are queued as one of `caps` allows.
            CodeGoneError: the code that the spec names is not here.
        """
        # Twins with one key come one after another; the second finds the first.
        async with self._database.write(job_id if claim is None else f"key/{project}/{claim.key}") as write:
            if claim is not None:
                earlier = await earlier_job(write, project, claim)
                if earlier is not None:
                    return earlier, False
            for cap in caps:
                await require_place(write, cap)
            await add_job(write, job_id, spec, project, submitter)
            if claim is not None:
                await remember(write, project, claim, job_id)
        return job_id, True

    async def get(self, job_id: str) -> Job | None:
        """Return a job, or None where there is none of that id."""
        async with self._database.look() as snapshot:
            return await read_job(snapshot, job_id)

    async def of_ids(self, job_ids: Collection[str]) -> list[Job]:
        """Return those of the jobs that there are."""
        return await self._fetch(select(*stored(jobs)).where(jobs.c.id.in_(job_ids))) if job_ids else []

    async def in_states(self, states: Collection[State]) -> list[Job]:
        """Return every job in one of the states, in the order in which they may start: priority, then age."""
        query = select(*stored(jobs)).where(jobs.c.state.in_([state.value for state in states]))
        return await self._fetch(query.order_by(jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id))

    async def queue(self, after: int, limit: int) -> list[Job]:
        """Return up to `limit` queued jobs from place `after` on, counted from 0, in the order in which they may start."""
        order = (jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)
        # Ids first: the index is in this order and has all that is needed to pass over those before.
        page = select(jobs.c.id).where(jobs.c.state == State.QUEUED.value).order_by(*order).offset(after).limit(limit)
        return await self._fetch(select(*stored(jobs)).where(jobs.c.id.in_(page)).order_by(*order))

    async def page(self, wanted: JobFilter, before: str | None, limit: int) -> list[Job]:
        """Return up to `limit` jobs, newest first, older than the job `before`."""
        states = sorted(state.value for state in wanted.states)
        async with self._database.look() as snapshot:
            return await read_page(snapshot, states, wanted.labels, wanted.project, wanted.words, before, limit)

    async def of_project(self, job_ids: Collection[str], project: str) -> set[str]:
        """Return which of the jobs belong to the project."""
        query = select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.project == project)
        async with self._database.read() as connection:
            return set((await connection.execute(query)).scalars())

    async def counts(self) -> dict[State, int]:
        """Return how many jobs are in each state; every state is there."""
        query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
        async with self._database.read() as connection:
            found = {State(state): number for state, number in (await connection.execute(query))}
        return {state: found.get(state, 0) for state in State}

    async def transitions_of(self, job_ids: Sequence[str]) -> dict[str, list[Transition]]:
        """Return the transitions of each of the jobs, oldest first."""
        async with self._database.look() as snapshot:
            return await read_transitions(snapshot, job_ids)

    async def histories(self, job_ids: Sequence[str]) -> tuple[dict[str, list[Transition]], dict[str, list[Attempt]]]:
        """Return the transitions and the attempts of each of the jobs, oldest first, of one moment."""
        async with self._database.look() as snapshot:
            return await read_transitions(snapshot, job_ids), await read_attempts(snapshot, job_ids)

    async def transition(
        self,
        job_id: str,
        to: State,
        *,
        from_: Collection[State],
        reason: str,
        message: str = "",
        fence: int | None = None,
        world_size: int | None = None,
    ) -> bool:
        """Change the state of a job, if it is as the caller believes it to be.

        Args:
            job_id: the job.
            to: the new state. A terminal one closes the open attempt and makes `end` the job's last event.
            from_: the states in which the caller believes the job to be.
            reason: machine-readable.
            message: for a person.
            fence: that of the attempt on whose behalf the caller acts; None where it acts for the job.
            world_size: the new number of ranks, where it changes.
        Returns:
            False where nothing was changed: no such job, another state, a change that is never allowed, or a stale fence.
        """
        async with self._database.write(job_id) as write:
            row = (await write.connection.execute(select(jobs.c.state, jobs.c.fence).where(jobs.c.id == job_id))).one_or_none()
            if row is None or State(row.state) not in from_ or not is_allowed(State(row.state), to):
                return False
            if fence is not None and fence != row.fence:
                return False
            columns = {} if world_size is None else {"world_size": world_size}
            await enter(write, job_id, Change(to, reason, message), **columns)
        return True

    async def explain(self, reasons: Sequence[tuple[str, str, str]]) -> None:
        """Say anew why queued jobs wait: (job id, reason, message). No transition, no event; one transaction for all."""
        if reasons:
            rows = [{"of": job_id, "why": reason, "said": message} for job_id, reason, message in reasons]
            is_meant = (jobs.c.id == bindparam("of")) & (jobs.c.state == State.QUEUED.value)
            statement = update(jobs).where(is_meant).values(reason=bindparam("why"), message=bindparam("said"))
            async with self._database.write("queue") as write:
                await write.connection.execute(statement, rows)

    async def set_message(self, job_id: str, reason: str, message: str) -> None:
        """Say anew why a job is where it is, such as why it still waits. No transition, no event."""
        async with self._database.write(job_id) as write:
            await write.connection.execute(update(jobs).where(jobs.c.id == job_id).values(reason=reason, message=message))

    async def restore_message(self, job_id: str) -> None:
        """Say of a job again what was said when it came into its state: what was said since is over."""
        last = (
            select(transitions.c.reason, transitions.c.message).where(transitions.c.job_id == job_id).order_by(transitions.c.number.desc())
        )
        async with self._database.write(job_id) as write:
            row = (await write.connection.execute(last.limit(1))).one_or_none()
            if row is not None:
                await write.connection.execute(update(jobs).where(jobs.c.id == job_id).values(reason=row.reason, message=row.message))

    async def edit(self, job_id: str, edition: int | None, *, priority: int | None, labels: Mapping[str, str] | None) -> bool:
        """Change what a user may change.

        Args:
            job_id: the job.
            edition: change only if this is still the job's edition; None changes it anyway.
            priority: the new one, or None to keep it.
            labels: all of the new ones, or None to keep them.
        Returns:
            False where there is no such job or its edition is another one.
        """
        values: dict[str, Any] = {"edition": jobs.c.edition + 1}
        values |= {} if priority is None else {"priority": priority}
        values |= {} if labels is None else {"labels": dict(labels)}
        where = jobs.c.id == job_id if edition is None else (jobs.c.id == job_id) & (jobs.c.edition == edition)
        async with self._database.write(job_id) as write:
            if (await write.connection.execute(update(jobs).where(where).values(**values))).rowcount == 0:
                return False
            if labels is not None:
                await write.connection.execute(delete(job_labels).where(job_labels.c.job_id == job_id))
                await _store_labels(write, job_id, labels)
            write.is_queue_changed = True
        return True

    async def delete(self, job_id: str) -> None:
        """Delete a job and all that hangs on it. The caller has seen to it that it is over."""
        async with self._database.write(job_id) as write:
            await write.connection.execute(delete(jobs).where(jobs.c.id == job_id))
            write.deleted.add(job_id)

    async def _fetch(self, query: Select[Any]) -> list[Job]:
        async with self._database.read() as connection:
            return [job_of(row) for row in await connection.execute(query)]


async def add_job(write: Write, job_id: str, spec: JobSpec, project: str, submitter: str) -> None:
    """Store a queued job of a project, submitted with a token of that name, in a transaction of the caller."""
    is_choosing = spec.norm.kind == AUTO_NORM
    choosing = Change(State.QUEUED, CHOOSING_NORM, "waits for short trials to choose norm.kind")
    change = choosing if is_choosing else Change(State.QUEUED, SUBMITTED)
    await write.prepared.run(_INSERT, [_new_row(job_id, spec, change, project, submitter)])
    await _store_labels(write, job_id, spec.labels)
    if spec.code is not None:
        await use_bundle(write, job_id, spec.code)
    if is_choosing:
        await write.connection.execute(insert(norm_choices).values(job_id=job_id))
    else:
        await store_need(write, job_id, spec)
    await begin(write, job_id, change)
    write.is_queue_changed = True


async def _store_labels(write: Write, job_id: str, labels: Mapping[str, str]) -> None:
    if labels:
        rows = [{"job_id": job_id, "key": key, "value": value} for key, value in labels.items()]
        await write.prepared.run(_INSERT_LABEL, rows)


def _new_row(job_id: str, spec: JobSpec, change: Change, project: str, submitter: str) -> dict[str, Any]:
    return dict.fromkeys(jobs.c.keys()) | {
        "id": job_id,
        "project": project,
        "name": spec.name,
        "state": change.to.value,
        "reason": change.reason,
        "message": change.message,
        "labels": spec.labels,
        "priority": spec.priority,
        "created_at": datetime.now(UTC),
        "progress": asdict(Progress()),
        "metrics": {},
        "world_size": spec.resources.min_workers,
        "fence": 0,
        "attempt": 0,
        "spec": spec.model_dump(mode="json"),
        "last_seq": 0,
        "edition": 1,
        "log_bytes": 0,
        "submitter": submitter,
        "ran_us": 0,
    }
