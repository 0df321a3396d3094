"""The quota of a job's stored log lines: beyond it the oldest go, and one line says how many were there."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import delete, select, update

from service.store.session import Write
from service.store.tables import events, jobs
from worker.contract import EventType, RankEvent

LINE_BYTES: Final = 200
"""What a line costs beside its text."""
CHUNK: Final = 5000


async def keep_quota(write: Write, job_id: str, fresh: Sequence[RankEvent], quota_bytes: int) -> None:
    """Count log lines that were just stored; where the job has more than its quota, drop the oldest.

    Little more than what is too much, so that no transaction takes long: others wait for it. What is dropped leaves its numbers: the last
    of it becomes the line that says so.
    """
    added = sum(_size(event.data) for event in fresh if event.type is EventType.LOG)
    if not added:
        return
    counted = update(jobs).where(jobs.c.id == job_id).values(log_bytes=jobs.c.log_bytes + added).returning(jobs.c.log_bytes)
    held = (await write.connection.execute(counted)).scalar_one()
    if held > quota_bytes:
        why = "the job logged more than its quota (SYNCBN_MAX_LOG_BYTES)"
        freed = await drop_lines(write, job_id, held - quota_bytes + min(CHUNK * LINE_BYTES, quota_bytes // 4), why)
        await write.connection.execute(update(jobs).where(jobs.c.id == job_id).values(log_bytes=held - freed))


async def drop_lines(write: Write, job_id: str, wanted_bytes: int, why: str) -> int:
    """Drop the oldest log lines until `wanted_bytes` are free, or all; the last becomes the line that says so. Return the bytes freed."""
    freed = num_lines = 0
    last: int | None = None
    logs = (events.c.job_id == job_id) & (events.c.type == EventType.LOG.value)
    while freed < wanted_bytes:
        query = select(events.c.seq, events.c.data).where(logs & (events.c.seq > (last or 0))).order_by(events.c.seq).limit(CHUNK)
        rows = (await write.connection.execute(query)).all()
        for seq, data in rows:
            freed += _size(data)
            num_lines += data.get("num_dropped", 1)
            last = seq
            if freed >= wanted_bytes:
                break
        if len(rows) < CHUNK:
            break
    if last is None:
        return 0
    await write.connection.execute(delete(events).where(logs & (events.c.seq < last)))
    message = f"{num_lines} lines were dropped here: {why}"
    marker = {"stream": "log", "level": "warning", "message": message, "num_dropped": num_lines}
    await write.connection.execute(update(events).where(logs & (events.c.seq == last)).values(data=marker))
    return freed - _size(marker)


def _size(data: dict[str, object]) -> int:
    return len(str(data.get("message", ""))) + LINE_BYTES
