# Generated from service/client/asynchronous/derivations.py by `make format`: change that file.
"""The routes that make a job of a checkpoint as methods. `changes` are values at dotted paths of the new job's spec."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from service.client.routes import route
from service.client.synchronous.job import Job
from service.client.synchronous.jobs import JobCalls

Changes = Mapping[str, Any]


class DerivationCalls(JobCalls):
    """Jobs made of a checkpoint: trained on, re-estimated, exported."""

    def fork(self, job_id: str, step: int | str = "latest", *, changes: Changes | None = None, idempotency_key: str | None = None) -> Job:
        """Submit a job like this one that begins with the weights of one of its checkpoints, and return it."""
        return self._derive(route("jobs", job_id, "fork"), {"step": str(step)}, changes, idempotency_key)

    def recalibrate(
        self,
        job_id: str,
        step: int | str = "best",
        *,
        num_samples: int = 10_000,
        estimator: str = "exact",
        changes: Changes | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit a job that re-estimates the running statistics of a checkpoint, and return it."""
        ask = {"num_samples": num_samples, "estimator": estimator}
        return self._derive(route("jobs", job_id, "checkpoints", step, "recalibrate"), ask, changes, idempotency_key)

    def export(
        self,
        job_id: str,
        step: int | str = "best",
        *,
        formats: Sequence[str],
        changes: Changes | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit a job that brings a checkpoint into other formats, and return it."""
        ask = {"formats": list(formats)}
        return self._derive(route("jobs", job_id, "checkpoints", step, "export"), ask, changes, idempotency_key)

    def _derive(self, path: str, ask: Mapping[str, Any], changes: Changes | None, key: str | None) -> Job:
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return self._job("POST", path, json={**ask, "set": dict(changes or {})}, headers=headers, is_repeatable=True)
