"""Small checkpoints for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import torch

from worker.checkpoint import Snapshot
from worker.contract.manifest import Health, Manifest

JOB = "job_" + "0" * 25 + "A"


def draft(step: int, *, fence: int = 1, metrics: dict[str, float] | None = None, is_healthy: bool = True, spec: Any = None) -> Manifest:
    """A manifest without files."""
    return Manifest(
        job_id=JOB,
        attempt=fence,
        fence=fence,
        step=step,
        epoch=1.0,
        samples=10,
        world_size=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        metrics={"val/accuracy": 0.5} if metrics is None else metrics,
        spec=spec or {},
        spec_sha256="0" * 64,
        versions={},
        health=Health(status="healthy" if is_healthy else "unhealthy"),
        layers=(),
        files={},
    )


def snapshot(step: int, *, fence: int = 1, metrics: dict[str, float] | None = None) -> Snapshot:
    """A checkpoint of a few numbers, which tell its step."""
    return Snapshot(
        draft(step, fence=fence, metrics=metrics),
        {"weight": torch.full((3, 2), float(step))},
        {"optimizer.weight.momentum_buffer": torch.zeros(3, 2)},
        {"step": step},
    )
