"""What ranks report, made by hand."""

from datetime import UTC, datetime
from typing import Any

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
