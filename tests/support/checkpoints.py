"""Small checkpoints for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import torch

from worker.checkpoint import Snapshot
from worker.contract.manifest import Health, LayerEntry, Manifest

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


def snapshot(
    step: int,
    *,
    fence: int = 1,
    metrics: dict[str, float] | None = None,
    weights: int = 2,
    model: Any = None,
    layers: Any = (),
    job_id: str = JOB,
) -> Snapshot:
    """A checkpoint of a few numbers, or of 3 * `weights`, which tell its step."""
    entries = tuple(LayerEntry(name=name, kind="SyncBatchNorm", num_channels=2, eps=1e-5, momentum=0.1) for name in layers)
    return Snapshot(
        draft(step, fence=fence, metrics=metrics).model_copy(update={"layers": entries, "job_id": job_id}),
        model or {"weight": torch.full((3, weights), float(step))},
        {"optimizer.weight.momentum_buffer": torch.zeros(3, 2)},
        {"step": step},
    )
