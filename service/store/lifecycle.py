"""What one change of state writes, inside a transaction of the caller: the row, the transition, the event, and at the end the end."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import func, insert, literal, select, update

from service.states import HOLDS_GANG, TERMINAL, State
from service.store.columns import Instant
from service.store.journal import Entry, append
from service.store.query import Command
from service.store.session import StateLeft, Write
from service.store.tables import attempts, jobs, transitions
from worker.contract import EventType

_INSERT: Final = Command(insert(transitions))


@dataclass(frozen=True)
class Change:
    """A change of state that has been found to be allowed."""

    to: State
    reason: str
    message: str = ""


async def begin(write: Write, job_id: str, change: Change) -> None:
    """Put down the first state of a job that this transaction has stored in that state."""
    await _put_down(write, job_id, 1, None, change, datetime.now(UTC))


async def enter(write: Write, job_id: str, change: Change, **columns: Any) -> None:
    """Put a job into a state.

    Args:
        write: the open transaction.
        job_id: the job; it exists.
        change: the state and why. On a terminal one, `end` becomes the job's last event.
        columns: what else changes in the job's row.
    """
    now = datetime.now(UTC)
    columns |= {"state": change.to.value, "reason": change.reason, "message": change.message}
    if change.to is State.RUNNING:
        columns |= {name: func.coalesce(jobs.c[name], literal(now, Instant())) for name in ("started_at", "running_since")}
    elif change.to not in HOLDS_GANG:
        began = func.coalesce(jobs.c.running_since, literal(now, Instant()))
        columns |= {"ran_us": jobs.c.ran_us + literal(now, Instant()) - began, "running_since": None}
    if change.to in TERMINAL:
        columns["finished_at"] = now
    await write.connection.execute(update(jobs).where(jobs.c.id == job_id).values(**columns))
    await _record(write, job_id, change, now)
    if change.to not in HOLDS_GANG:
        await close_attempt(write, job_id, now)


async def close_attempt(write: Write, job_id: str, now: datetime) -> None:
    """Give the open attempt, if there is one, its end."""
    is_open = (attempts.c.job_id == job_id) & attempts.c.finished_at.is_(None)
    await write.connection.execute(update(attempts).where(is_open).values(finished_at=now))


async def _record(write: Write, job_id: str, change: Change, now: datetime) -> None:
    mine = select(transitions).where(transitions.c.job_id == job_id)
    last = (await write.connection.execute(mine.order_by(transitions.c.number.desc()).limit(1))).one()
    write.left.append(StateLeft(job_id, last.state, last.reason, last.at, now, change.to.value))
    attempt = (await write.connection.execute(select(jobs.c.attempt).where(jobs.c.id == job_id))).scalar_one() or None
    await _put_down(write, job_id, last.number + 1, attempt, change, now)


async def _put_down(  # noqa: PLR0917 - called from two places above
    write: Write, job_id: str, number: int, attempt: int | None, change: Change, now: datetime
) -> None:
    said = {"state": change.to.value, "reason": change.reason, "message": change.message}
    await write.prepared.run(_INSERT, [{"job_id": job_id, "number": number, "at": now, **said}])
    types = [EventType.STATE, EventType.END] if change.to in TERMINAL else [EventType.STATE]
    await append(write, job_id, [Entry(at=now, type=type_, attempt=attempt, data=said) for type_ in types])
