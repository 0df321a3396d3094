"""One attempt of one job, from its gang to the state that follows: form or adopt, watch, dissolve, conclude.

Owns nothing that must survive: killed at any instant and run again, it adopts the living gang, reads on from the stored cursors and
comes to the same end. What an end means is decided in `service.retrying`; how a gang is read, in `service.watch`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from service.assignments import Assignments
from service.cluster import Cluster, ClusterError, NoRoomError, RunningGang
from service.retrying import Cancel, Fail, Restart, Succeed, Verdict, after_gang_lost
from service.states import HOLDS_GANG, State
from service.store.errors import LeaseLostError
from service.store.records import Job
from service.store.store import Store
from service.watch import Watch
from worker.contract import FailureCode

RETRY_S = 1.0
"""Pause before asking a cluster again that did not answer."""

log = structlog.get_logger()

T = TypeVar("T")


class Supervisor:
    """Brings one attempt of one job to its end."""

    def __init__(self, store: Store, cluster: Cluster, assignments: Assignments, job: Job) -> None:
        self._store = store
        self._cluster = cluster
        self._assignments = assignments
        self._job = job
        self._watch = Watch(store, job)

    def cancel(self) -> None:
        """Have the attempt end; called when the job's state has become `cancelling`."""
        self._watch.cancel()

    async def form(self) -> None:
        """Form the gang of a new attempt and see it through. The attempt was stored before."""
        resources = self._job.spec.resources
        cpus, gpus = resources.cpus_per_worker, resources.gpus_per_worker
        try:
            assignment = await self._assignments.prepare(self._job)
            gang = await self._cluster.form(self._job.id, self._job.attempt, self._job.world_size, cpus=cpus, gpus=gpus)
            await self._confirm(gang)
            await gang.start(assignment)
        except NoRoomError as error:
            await self._give_up(State.QUEUED, "no_room", str(error))
        except (ClusterError, OSError) as error:
            await self._give_up(State.FAILED, FailureCode.GANG_START_FAILED, f"the gang could not be started: {error}")
        else:
            await self._see_through(gang)

    async def _confirm(self, gang: RunningGang) -> None:
        """See to it that the job is still this controller's before its ranks do anything: forming took a while.

        A controller that was stopped meanwhile and lost the job ends what it made. Nobody else has adopted it: only started gangs are.
        """
        try:
            await self._store.jobs.set_message(self._job.id, self._job.reason, "the workers are there; they meet")
        except LeaseLostError:
            with contextlib.suppress(ClusterError):  # what is left then is found by name and ended by whoever has the job
                await gang.dissolve()
            raise

    async def adopt(self) -> None:
        """Find the gang that an earlier controller formed and see it through; where it is gone, decide what follows."""
        gang = await self._insist(self._find)
        if gang is not None:
            log.info("gang_adopted", job=self._job.id, attempt=self._job.attempt)
            await self._see_through(gang)
        elif self._job.state is State.STARTING:
            await self._give_up(State.QUEUED, "controller_restarted", "the controller ended while the gang was being formed")
        else:
            await self._insist(self._dissolve_by_name)
            await self._conclude(Cancel() if self._watch.is_cancelled else await self._after_gang_lost())

    async def _see_through(self, gang: RunningGang) -> None:
        verdict = await self._watch.until_decided(gang)
        # The job's state says what its processes do, so no terminal state before the last of them is gone.
        await self._insist(gang.dissolve)
        await self._conclude(verdict)

    async def _give_up(self, to: State, reason: str, message: str) -> None:
        """Leave `starting` without having trained; a cancel that came meanwhile wins."""
        await self._insist(self._dissolve_by_name)
        await self._assignments.discard(self._job)
        if not await self._store.jobs.transition(self._job.id, to, from_={State.STARTING}, reason=reason, message=message):
            await self._cancelled()

    async def _conclude(self, verdict: Verdict) -> None:
        """Put the job into the state that follows; a cancel that came before the end was stored wins."""
        await self._assignments.discard(self._job)
        live = HOLDS_GANG - {State.CANCELLING}
        match verdict:
            case Succeed():
                done = await self._enter(State.SUCCEEDED, "completed", "every step is done and the last checkpoint is published", live)
            case Fail(failure):
                done = await self._enter(State.FAILED, failure.code, failure.message, live)
            case Restart(message):
                done = await self._enter(State.QUEUED, "restart", message, live)
            case _:
                done = False
        if not done:
            await self._cancelled()

    async def _cancelled(self) -> None:
        await self._enter(State.CANCELLED, "cancelled_by_user", "every process of the job is gone", {State.CANCELLING})

    async def _enter(self, to: State, reason: str, message: str, from_: frozenset[State] | set[State]) -> bool:
        changed = await self._store.jobs.transition(self._job.id, to, from_=from_, reason=reason, message=message, fence=self._job.fence)
        if changed:
            log.info("job_entered", job=self._job.id, state=to.value, reason=reason, message=message)
        return changed

    async def _after_gang_lost(self) -> Verdict:
        attempts = await self._store.attempts.of(self._job.id)
        restarts = sum(attempt.reason == "restart" for attempt in attempts)
        return after_gang_lost(restarts, self._job.spec.retries.restarts)

    async def _find(self) -> RunningGang | None:
        return await self._cluster.adopt(self._job.id, self._job.attempt, self._job.world_size)

    async def _dissolve_by_name(self) -> None:
        await self._cluster.dissolve(self._job.id, self._job.attempt, self._job.world_size)

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the cluster until it answers: silence is never a reason to declare anything."""
        while True:
            try:
                return await ask()
            except ClusterError as error:
                log.warning("cluster_not_responding", job=self._job.id, error=str(error))
                await self._store.jobs.set_message(self._job.id, "not_responding", f"waiting for the cluster: {error}")
                await asyncio.sleep(RETRY_S)
