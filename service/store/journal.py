"""The numbering of a job's events: 1, 2, 3 and so on without gaps, given out inside the transaction that stores them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, insert, select, update

from service.store.query import Command, Query
from service.store.session import Write
from service.store.tables import events, jobs
from worker.contract import EventType

_LAST: Final = Query(select(jobs.c.last_seq).where(jobs.c.id == bindparam("of")))
_INSERT: Final = Command(insert(events))
_COUNT: Final = Command(update(jobs).where(jobs.c.id == bindparam("of")).values(last_seq=bindparam("last")))


@dataclass(frozen=True)
class Entry:
    """An event that has no number yet. `rank` and `rank_seq` are None where the controller speaks."""

    at: datetime
    type: EventType
    attempt: int | None
    data: dict[str, Any]
    rank: int | None = None
    rank_seq: int | None = None


async def append(write: Write, job_id: str, entries: Sequence[Entry]) -> None:
    """Number and store events of one job, and have its readers woken after the commit."""
    if not entries:
        return
    first = (await write.prepared.rows(_LAST, of=job_id))[0][0] + 1
    rows = [
        {
            "job_id": job_id,
            "seq": seq,
            "at": entry.at,
            "type": entry.type.value,
            "attempt": entry.attempt,
            "rank": entry.rank,
            "rank_seq": entry.rank_seq,
            "data": entry.data,
        }
        for seq, entry in enumerate(entries, first)
    ]
    last = first + len(rows) - 1
    await write.prepared.run(_INSERT, rows)
    await write.prepared.run(_COUNT, [{"of": job_id, "last": last}])
    write.newest[job_id] = last
