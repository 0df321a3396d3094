"""Searching a job's log lines, however many there are, in steps that hold the database for some milliseconds each.

The database looks for what every database compares alike, in the JSON as it is stored; of what it finds each line is looked at here. So
only lines that may be wanted leave it, and what is found does not depend on which database it is.
"""

import asyncio
import re
import time
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, LargeBinary, Text, cast, collate, func, select, type_coerce

from service.needle import Needle
from service.store.columns import dump_json
from service.store.database import Database
from service.store.events import event_of
from service.store.records import Event
from service.store.session import Session
from service.store.tables import events
from worker.contract import EventType

WINDOW: Final = 5000
"""Lines that are looked through in one transaction. They have at most 8192 characters each (`worker.output`)."""
BUDGET_S: Final = 0.5
"""After so long a search ends with what it has, and says where to go on."""
AT_ONCE: Final = 2
"""Searches that are at the database at the same time: half of the readers that SQLite has here stay free for others."""
_NEWEST: Final = 2**63 - 1


@dataclass(frozen=True)
class Found:
    """What a search found, and how far it came."""

    lines: list[Event]
    """Oldest first; and what says that lines are missing, which nobody can search."""
    num_searched: int
    """Lines that were looked at, of all ranks."""
    next_seq: int | None
    """Where to go on; None at the end of the log."""


@dataclass(frozen=True)
class Stretch:
    """Events between two numbers, which are not among them, read from one of the two sides."""

    after: int
    before: int
    is_backwards: bool

    def has(self, seq: int) -> bool:
        """Return whether an event is in it."""
        return self.after < seq < self.before

    def condition(self) -> ColumnElement[bool]:
        """Return the same for a query."""
        return (events.c.seq > self.after) & (events.c.seq < self.before)

    def order(self) -> ColumnElement[int]:
        """Return by what its events are ordered."""
        return events.c.seq.desc() if self.is_backwards else events.c.seq.asc()

    def through(self, seq: int) -> "Stretch":
        """Return the part up to an event, this included."""
        return replace(self, after=seq - 1) if self.is_backwards else replace(self, before=seq + 1)

    def beyond(self, seq: int) -> "Stretch":
        """Return what is left of it behind an event."""
        return replace(self, before=seq) if self.is_backwards else replace(self, after=seq)


class _Step(NamedTuple):
    lines: list[Event]
    num_searched: int
    last_seq: int | None
    """None: all of the stretch was looked through."""


class Logs:
    """Searches of what the ranks wrote."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._places = asyncio.Semaphore(AT_ONCE)

    async def search(
        self, job_id: str, needle: Needle, limit: int, *, after_seq: int = 0, before_seq: int | None = None, rank: int | None = None
    ) -> Found:
        """Look through a job's log for lines that contain a text, until there are enough, or for as long as one search may take.

        Args:
            job_id: the job.
            needle: what is looked for.
            limit: most lines returned.
            after_seq: only what is newer; 0 begins at the beginning.
            before_seq: only what is older, from the newest of it towards the beginning; None: from the oldest on.
            rank: only lines of this rank.
        """
        stretch = Stretch(after_seq, before_seq or _NEWEST, is_backwards=before_seq is not None)
        deadline = time.monotonic() + BUDGET_S
        lines: list[Event] = []
        num_searched = 0
        while True:
            async with self._places:
                step = await self._step(job_id, needle, stretch, limit - len(lines), rank)
            lines += step.lines
            num_searched += step.num_searched
            if step.last_seq is None or len(lines) == limit or time.monotonic() >= deadline:
                return Found(lines[::-1] if stretch.is_backwards else lines, num_searched, step.last_seq)
            stretch = stretch.beyond(step.last_seq)

    async def _step(self, job_id: str, needle: Needle, stretch: Stretch, room: int, rank: int | None) -> _Step:
        """Look through the first WINDOW lines of a stretch, or as many as there is room for what is found."""
        async with self._database.read() as session:
            # The numbers come out of the index: however long the log is, no more of it is read than is looked through.
            query = select(events.c.seq).where(_of(job_id, EventType.LOG) & stretch.condition()).order_by(stretch.order()).limit(WINDOW)
            seqs: list[int] = list((await session.execute(query)).scalars())
            last = seqs[-1] if len(seqs) == WINDOW else None
            part = stretch if last is None else stretch.through(last)
            wanted = _of(job_id, EventType.LOG) & _may_contain(session, needle)
            logs = await _read(session, part, wanted if rank is None else wanted & (events.c.rank == rank), room)
            gaps = await _read(session, part, _of(job_id, EventType.GAP), room)
        found = sorted([*(event for event in logs if needle.is_in(event.message)), *gaps], key=_seq, reverse=stretch.is_backwards)
        # Of what there is as much of as there was room for, there may be more behind.
        ends = [some[-1].seq for some in (logs, gaps) if len(some) == room] + [event.seq for event in found[room - 1 : room]]
        if ends:
            last = (max if stretch.is_backwards else min)(ends)
            part = stretch.through(last)
        return _Step([event for event in found if part.has(event.seq)], sum(map(part.has, seqs)), last)


def _of(job_id: str, type_: EventType) -> ColumnElement[bool]:
    return (events.c.job_id == job_id) & (events.c.type == type_.value)


async def _read(session: Session, part: Stretch, wanted: ColumnElement[bool], limit: int) -> list[Event]:
    query = select(events).where(wanted & part.condition()).order_by(part.order()).limit(limit)
    return [event_of(row) for row in (await session.execute(query)).mappings()]


def _may_contain(session: Session, needle: Needle) -> ColumnElement[bool]:
    """Return a condition without which a line does not contain the text."""
    stored: ColumnElement[str] = type_coerce(events.c.data, Text)
    is_postgres = session.dialect_name == "postgresql"
    if not needle.core:
        num_bytes = func.octet_length(stored) if is_postgres else func.length(cast(stored, LargeBinary))
        return num_bytes > func.length(stored)  # there is more than ASCII in it
    escaped = re.sub(r"([!%_])", r"!\1", dump_json(needle.core)[1:-1])
    # Capitals of ASCII only, as SQLite has it.
    return (collate(stored, "C") if is_postgres else stored).ilike(f'%"message":%{escaped}%', escape="!")


def _seq(event: Event) -> int:
    return event.seq
