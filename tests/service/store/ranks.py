"""What ranks report, made by hand."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text

from worker.contract import EventType, RankEvent, parse_spec

SPEC = {"name": "t", "model": {"name": "resnet18"}, "data": {"name": "digits"}, "resources": {"workers": 2}}
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def spec(**changes: Any):
    """Return a resolved spec."""
    return parse_spec(SPEC | changes)


def said(seq: int, type_: EventType, **data: Any) -> RankEvent:
    """Return one event of a rank."""
    return RankEvent(seq=seq, at=AT, type=type_, data=data)


def metrics(seq: int, step: int, **values: float) -> RankEvent:
    """Return a metrics event; `train_loss` becomes `train/loss`."""
    named = {name.replace("_", "/", 1): value for name, value in values.items()}
    return said(seq, EventType.METRICS, step=step, total_steps=100, epoch=step / 10, samples=step * 8, values=named)


def manifest(job_id: str, step: int, *, fence: int = 1, accuracy: float = 0.5, status: str = "healthy", **changes: Any) -> dict[str, Any]:
    """Return the data of a checkpoint event."""
    return {
        "job_id": job_id,
        "attempt": 1,
        "fence": fence,
        "step": step,
        "epoch": step / 10,
        "samples": step * 8,
        "world_size": 2,
        "created_at": AT.isoformat(),
        "metrics": {"val/accuracy": accuracy},
        "spec": {},
        "spec_sha256": "0" * 64,
        "versions": {},
        "health": {"status": status, "findings": []},
        "layers": [],
        "files": {},
    } | changes


async def talk(store: Any, job_id: str, number: int) -> None:
    """Store so many log lines of rank 0 behind what there is, at once: `line 1 of many` and so on."""
    last_seq = (await store.jobs.get(job_id)).last_seq
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :last)"
    data = """'{"stream":"stdout","level":"info","message":"line ' || i || ' of many"}'"""
    columns = "job_id, seq, at, type, attempt, rank, rank_seq, data"
    insert = f"{numbers} INSERT INTO events ({columns}) SELECT :job_id, i + {last_seq}, 0, 'log', 1, 0, i + {last_seq}, {data} FROM n"
    async with store._database.write(job_id) as write:
        await write.connection.execute(text(insert), [{"last": number, "job_id": job_id}])
        told = text("UPDATE jobs SET last_seq = :last_seq WHERE id = :job_id")
        await write.connection.execute(told, [{"last_seq": last_seq + number, "job_id": job_id}])
