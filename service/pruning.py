"""Retention at work: drops what the operator's policy says is old, a small step at a time. Of several controllers one does it.

What is old is said in `service.retention`. Killed at any instant, it leaves every job either as it was or with less of what was to go;
the next pass goes on. Nothing of a job that has not ended is touched.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import structlog

from service.artifacts import Artifacts
from service.bundles import remove_bundle
from service.policy import PolicyFile
from service.retention import Retention, steps_to_drop
from service.store.errors import DatabaseAwayError, LeaseLostError
from service.store.ids import new_id
from service.store.prunings import Part
from service.store.store import Store
from worker.storage.storage import Storage

PASS_S: Final = 3600.0
"""Between two passes."""
REST_S: Final = 0.01
"""Between two transactions, so that those of jobs come in between."""
LEASE_S: Final = 300.0
_LEASE: Final = "retention"

log = structlog.get_logger()


class Pruner:
    """Keeps the store of one controller as small as the policy says."""

    def __init__(self, store: Store, storage: Storage, policy: PolicyFile) -> None:
        self._shared = store
        self._storage = storage
        self._policy = policy
        self._holder = new_id("pruner")
        self._thinned: set[str] = set()
        """Jobs whose checkpoints have been seen to be as few as they get, so that they are not read every hour."""

    async def run(self) -> None:
        """Pass over everything again and again."""
        while True:
            try:
                await self.once()
            except (DatabaseAwayError, LeaseLostError, OSError) as error:
                log.warning("pruning_given_up", error=str(error))
            except Exception:
                log.exception("pruning_failed")  # the outermost loop: a fault of one pass must not end all passes
            await asyncio.sleep(PASS_S)

    async def once(self) -> None:
        """Drop what is old now; nothing where another controller is at it.

        Raises:
            LeaseLostError: another controller has taken over.
            DatabaseAwayError: the database does not answer.
            OSError: the storage does not.
        """
        retention = self._policy.current().retention
        if retention == Retention():
            return
        lease = (await self._shared.leases.take([_LEASE], self._holder, LEASE_S)).get(_LEASE)
        if lease is None:
            return
        try:
            await self._pass(self._shared.under(lease), retention)
        finally:
            await self._shared.leases.give_back(self._holder, [_LEASE])

    async def _pass(self, store: Store, retention: Retention) -> None:
        drop = store.prunings
        parts = (
            (Part.LOGS, retention.logs_days, drop.drop_logs),
            (Part.EVENTS, retention.events_days, drop.drop_events),
            (Part.METRICS, retention.metrics_days, drop.drop_metrics),
        )
        for part, days, step in parts:
            if days is not None:
                await self._drop(store, part, days, step)
        if retention.checkpoints_days is not None:
            await self._drop_checkpoints(store, retention.checkpoints_days)
        if retention.jobs_days is not None:
            await self._drop_jobs(store, retention.jobs_days)
        if retention.code_days is not None:
            for bundle in await store.bundles.old(retention.code_days):
                if await remove_bundle(store, self._storage, bundle):
                    log.info("code_dropped", code=bundle.id, project=bundle.project)

    async def _drop(self, store: Store, part: Part, days: int, step: Callable[[str], Awaitable[bool]]) -> None:
        async for job_id in store.prunings.old(part, days):
            await self._repeat(step, job_id)
            log.info("part_dropped", job=job_id, part=part.value)

    async def _drop_checkpoints(self, store: Store, days: int) -> None:
        async for job_id in store.prunings.old(Part.CHECKPOINTS, days):
            job = None if job_id in self._thinned else await store.jobs.get(job_id)
            if job is None:
                continue
            pins = await asyncio.to_thread(self._storage.pins, job_id)
            manifests = [one.manifest for one in await store.checkpoints.of(job_id)]
            steps = steps_to_drop(manifests, job.spec.checkpoint.keep_best, pins)
            if steps and job_id in await store.prunings.needed():
                continue
            for step in steps:
                await self._repeat(partial(self._drop_checkpoint, store, step), job_id)
            if steps:
                log.info("checkpoints_dropped", job=job_id, steps=steps)
            if not pins:
                self._thinned.add(job_id)

    async def _drop_checkpoint(self, store: Store, step: int, job_id: str) -> bool:
        await asyncio.to_thread(self._storage.remove, job_id, step, unless_pinned=True)
        # It may have been pinned just now.
        if step not in await asyncio.to_thread(self._storage.steps, job_id):
            await store.checkpoints.drop(job_id, step)
        return False

    async def _drop_jobs(self, store: Store, days: int) -> None:
        artifacts = Artifacts(store, self._storage)
        async for job_id in store.prunings.old(Part.JOB, days):
            # A pin or a job to come keeps a checkpoint, and with it its job. Asked anew for each: jobs are submitted meanwhile.
            if (await asyncio.to_thread(self._storage.pins, job_id)) != set() or job_id in await store.prunings.needed():
                continue
            for step in (store.prunings.drop_events, store.prunings.drop_metrics):
                await self._repeat(step, job_id)
            # Files first: a crash between the two leaves a job that is dropped by the next pass, not files that nobody knows.
            await artifacts.delete(job_id)
            await store.jobs.delete(job_id)
            log.info("job_dropped", job=job_id)
        await store.prunings.drop_comparisons(days)

    async def _repeat(self, step: Callable[[str], Awaitable[bool]], job_id: str) -> None:
        """Take a step until nothing is left for it, with the lease renewed and room for others in between."""
        is_more = True
        while is_more:
            is_more = await step(job_id)
            await self._shared.leases.renew(self._holder, LEASE_S)
            await asyncio.sleep(REST_S)
