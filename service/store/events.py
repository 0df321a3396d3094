"""Events: what the ranks reported, stored once, numbered for the whole job; and how far each rank has been read."""

import logging
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import RowMapping, func, select

from service.states import TERMINAL, State
from service.store.checkpoints import drop_steps, take_manifest
from service.store.database import Database
from service.store.journal import Entry, append
from service.store.log_quota import keep_quota
from service.store.metrics import take_metrics
from service.store.records import Event
from service.store.session import Write
from service.store.tables import events, jobs
from worker.contract import EventType, RankEvent

_ENDED = "ended"

_log = logging.getLogger(__name__)


class Events:
    """Queries about events."""

    def __init__(self, database: Database, max_log_bytes: int) -> None:
        self._database = database
        self._max_log_bytes = max_log_bytes

    async def ingest(self, job_id: str, attempt_number: int, rank: int, batch: Sequence[RankEvent], fence: int) -> bool:
        """Store what one rank reported: the events, and what follows from them, in one transaction.

        Handing in the same events again changes nothing. Metrics feed the series and the job's progress, checkpoints the catalogue. A
        rank's `end` is stored as `state` with phase `ended`: only the job itself has an `end`, its last event.

        Returns:
            False where nothing was stored because the fence is stale, or the job is over or gone.
        """
        if not batch:
            return True
        async with self._database.write(job_id) as write:
            row = (await write.connection.execute(select(jobs.c.state, jobs.c.fence).where(jobs.c.id == job_id))).one_or_none()
            if row is None or row.fence != fence or State(row.state) in TERMINAL:
                return False
            fresh = await _without_known(write, job_id, attempt_number, rank, batch)
            await append(write, job_id, [_entry(event, attempt_number, rank) for event in fresh])
            await take_metrics(write, job_id, [event.data for event in fresh if event.type is EventType.METRICS])
            await _take_checkpoints(write, job_id, fresh, fence)
            await keep_quota(write, job_id, fresh, self._max_log_bytes)
        return True

    async def cursors(self, job_id: str, attempt_number: int) -> dict[int, int]:
        """Return, for each rank that was ever heard in an attempt, the number of its last stored event."""
        mine = (events.c.job_id == job_id) & (events.c.attempt == attempt_number) & events.c.rank_seq.is_not(None)
        query = select(events.c.rank, func.max(events.c.rank_seq)).where(mine).group_by(events.c.rank)
        async with self._database.read() as connection:
            return {int(rank or 0): last for rank, last in (await connection.execute(query))}

    async def last_words(self, job_id: str, attempt_number: int) -> dict[int, dict[str, Any]]:
        """Return the data of the `end` of each rank that has said nothing after it: a process that took its place is another one."""
        mine = (events.c.job_id == job_id) & (events.c.attempt == attempt_number) & events.c.rank_seq.is_not(None)
        last = select(events.c.rank, func.max(events.c.rank_seq).label("rank_seq")).where(mine).group_by(events.c.rank).subquery()
        is_last = (events.c.rank == last.c.rank) & (events.c.rank_seq == last.c.rank_seq)
        query = select(events.c.rank, events.c.data).join(last, is_last).where(mine & (events.c.type == EventType.STATE.value))
        async with self._database.read() as connection:
            return {int(rank or 0): data for rank, data in (await connection.execute(query)) if data.get("phase") == _ENDED}

    async def page(
        self,
        job_id: str,
        after_seq: int,
        limit: int,
        *,
        types: Collection[EventType] = (),
        rank: int | None = None,
        before_seq: int | None = None,
    ) -> list[Event]:
        """Return up to `limit` events newer than `after_seq`, oldest first.

        Args:
            job_id: the job.
            after_seq: 0 begins at the beginning.
            limit: most events returned.
            types: only these, and what says that events are missing; all, where empty.
            rank: only this rank's; the job's `end` is among them where `types` asks for it.
            before_seq: only what is older than this, and of that the newest; None for the oldest after `after_seq`.
        """
        query = select(events).where((events.c.job_id == job_id) & (events.c.seq > after_seq)).limit(limit)
        query = query.order_by(events.c.seq) if before_seq is None else query.where(events.c.seq < before_seq).order_by(events.c.seq.desc())
        if types:
            query = query.where(events.c.type.in_([type_.value for type_ in (*types, EventType.GAP)]))
        if rank is not None:
            query = query.where((events.c.rank == rank) | events.c.type.in_([EventType.END.value, EventType.GAP.value]))
        async with self._database.read() as connection:
            found = [event_of(row) for row in (await connection.execute(query)).mappings()]
        return found if before_seq is None else found[::-1]

    async def spread(self, job_id: str, type_: EventType, most: int) -> list[Event]:
        """Return at most `most` of a job's events of one type, evenly spread, oldest first; the newest is always among them."""
        mine = (events.c.job_id == job_id) & (events.c.type == type_.value)
        async with self._database.read() as connection:
            # The numbers come out of the index; only what is kept is read and decoded.
            seqs = list((await connection.execute(select(events.c.seq).where(mine).order_by(events.c.seq))).scalars())
            number = min(most, len(seqs))
            kept = [seqs[(place + 1) * len(seqs) // number - 1] for place in range(number)]
            query = select(events).where((events.c.job_id == job_id) & events.c.seq.in_(kept)).order_by(events.c.seq)
            return [event_of(row) for row in (await connection.execute(query)).mappings()]


async def _without_known(write: Write, job_id: str, attempt: int, rank: int, batch: Sequence[RankEvent]) -> list[RankEvent]:
    """Return the events of a batch that are not stored yet, each once, in the rank's order."""
    by_seq = {event.seq: event for event in batch}
    mine = (events.c.job_id == job_id) & (events.c.attempt == attempt) & (events.c.rank == rank)
    query = select(events.c.rank_seq).where(mine & events.c.rank_seq.between(min(by_seq), max(by_seq)))
    known = set((await write.connection.execute(query)).scalars())
    return [by_seq[seq] for seq in sorted(by_seq) if seq not in known]


async def _take_checkpoints(write: Write, job_id: str, fresh: Sequence[RankEvent], fence: int) -> None:
    for event in fresh:
        if event.type is EventType.PRUNED:
            await drop_steps(write, job_id, event.data["steps"])
        if event.type is EventType.CHECKPOINT and not await take_manifest(write, job_id, event.data, fence):
            _log.warning("a checkpoint event of %s without a manifest of this job and attempt was left out of the catalogue", job_id)


def _entry(event: RankEvent, attempt: int, rank: int) -> Entry:
    is_end = event.type is EventType.END
    type_, data = (EventType.STATE, {"phase": _ENDED, **event.data}) if is_end else (event.type, event.data)
    return Entry(at=event.at, type=type_, attempt=attempt, data=data, rank=rank, rank_seq=event.seq)


def event_of(row: RowMapping) -> Event:
    """Return a row as an event."""
    return Event(row["seq"], row["at"], EventType(row["type"]), row["attempt"], row["rank"], row["data"])
