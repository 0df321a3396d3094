"""One attempt of one job, from its gang to the state that follows: form or adopt, watch, recover, dissolve, conclude.

Owns nothing that must survive: killed at any instant and run again, it adopts the living gang, reads on from the stored cursors and
comes to the same end. What an end means is decided in `service.retrying`; how a gang is read, in `service.watch`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from service.assignments import Assignments
from service.cluster import Cluster, ClusterError, NoRoomError, RankDiedError, RunningGang
from service.pausing import STEP_S, paused
from service.resizing import Resizer
from service.retrying import Cancel, Fail, Pause, Replace, Resize, Restart, Succeed, Verdict, Why, after_gang_lost, named
from service.states import HOLDS_GANG, State
from service.store.errors import LeaseLostError
from service.store.records import Job
from service.store.store import Store
from service.watch import NOT_RESPONDING, RESTART, Watch
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
        self._resizer = Resizer(store, assignments, self._watch, job)

    def pause(self) -> None:
        """Have the attempt save and end; called when the job's state has become `pausing`."""
        self._watch.pause()

    def cancel(self) -> None:
        """Have the attempt end; called when the job's state has become `cancelling`."""
        self._watch.cancel()

    def resize(self, workers: int | None, why: str | None) -> None:
        """Have the attempt go on with another number of ranks as soon as all of them train; None: with those that it has."""
        self._watch.resize = None if workers is None else Resize(workers, Why(why or Why.ASKED))

    async def form(self) -> None:
        """Form the gang of a new attempt and see it through. The attempt was stored before."""
        resources = self._job.spec.resources
        cpus, gpus, is_given_up = resources.cpus_per_worker, resources.gpus_per_worker, lambda: self._watch.is_ending
        whose = self._job.id, self._job.attempt, self._job.world_size
        try:
            assignment = await self._assignments.prepare(self._job, range(self._job.world_size))
            gang = await self._cluster.form(*whose, cpus=cpus, gpus=gpus, is_given_up=is_given_up)
            await self._confirm(gang)
        except NoRoomError as error:
            await self._give_up(State.QUEUED, "no_room", str(error))
        except RankDiedError as error:
            verdict = after_gang_lost(await self._watch.restarts())
            is_restart = isinstance(verdict, Restart)
            reason = RESTART if is_restart else FailureCode.GANG_START_FAILED
            await self._give_up(State.QUEUED if is_restart else State.FAILED, reason, f"a rank died when it was started: {error}")
        except (ClusterError, OSError) as error:
            await self._give_up(State.FAILED, FailureCode.GANG_START_FAILED, f"the gang could not be started: {error}")
        else:
            with contextlib.suppress(ClusterError):  # a rank that died meanwhile: the watch sees which, and has it replaced
                await self._watch.unless_given_up(gang.assign(1, assignment))
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
        # Who is to end need not answer first: a rank whose code keeps Python's lock would not, and is found by name.
        finding = self._insist(self._find, unless=lambda: self._watch.pausing_s > STEP_S)
        gang = await self._watch.unless_given_up(finding)
        if gang is not None:
            log.info("gang_adopted", job=self._job.id, attempt=self._job.attempt)
            await self._see_through(gang)
            return
        said = await self._watch.last_words()
        if not said and not await self._has_begun():
            await self._give_up(State.QUEUED, "controller_restarted", "the controller ended while the gang was being formed")
        else:
            await self._insist(self._dissolve_by_name)
            waited_s = self._watch.pausing_s
            is_unreached = not said and (self._watch.is_given_up or waited_s > STEP_S)
            unsaved = Pause(f"the ranks could not be reached within {min(waited_s, STEP_S):.0f} s") if is_unreached else None
            await self._conclude(Cancel() if self._watch.is_cancelled else unsaved or await self._watch.aftermath(said))

    async def _has_begun(self) -> bool:
        """Return whether the gang, which is gone, may have trained: a job that is pausing or cancelling may have been forming it."""
        if self._job.state in {State.PAUSING, State.CANCELLING}:
            return bool(await self._store.events.cursors(self._job.id, self._job.attempt))
        return self._job.state is not State.STARTING

    async def _see_through(self, gang: RunningGang) -> None:
        verdict = await self._watch.until_decided(gang)
        while isinstance(verdict, Replace | Resize):
            following = await (self._recover(gang, verdict) if isinstance(verdict, Replace) else self._resizer.resize(gang, verdict))
            verdict = following or await self._watch.until_decided(gang)
        # The job's state says what its processes do, so no terminal state before the last of them is gone.
        await self._insist(gang.dissolve)
        await self._conclude(verdict)

    async def _recover(self, gang: RunningGang, verdict: Replace) -> Verdict | None:
        """Replace lost ranks and have all meet anew; return what follows where that cannot be, None where the gang is to be watched."""
        job = await self._store.jobs.get(self._job.id) or self._job
        generation = gang.generation + 1
        used, limit = await self._store.recoveries.used(job.id) + 1, job.spec.retries.recoveries
        lost, why = verdict.ranks, verdict.what and f" ({verdict.what})"
        message = f"{named(lost)} lost at step {job.progress.step}{why}; the others keep the state; recovery {used} of {limit}"
        data = {"generation": generation, "ranks": list(lost), "step": job.progress.step, "used": used, "budget": limit, "message": message}
        log.warning("recovery", job=job.id, **{name: value for name, value in data.items() if name != "message"})
        # Stored before anything is done, so that the budget holds whoever is killed. Where the job moved on, the watch sees to that.
        if not await self._store.recoveries.begin(job.id, self._job.fence, FailureCode.RANK_LOST, data):
            await asyncio.sleep(RETRY_S)
            return None
        try:
            is_short = len(gang.places) - len(lost) < job.spec.resources.min_workers
            # A pause does without a checkpoint of its own rather than wait for room that may never come.
            waits = {"is_given_up": lambda: self._watch.is_cancelled, "is_needed": lambda: is_short and not self._watch.is_pausing}
            await gang.replace(lost, generation, **waits)
            # Raises where this controller was stopped meanwhile and has lost the job: whoever has it tells the ranks where to meet.
            await self._store.jobs.set_message(job.id, FailureCode.RANK_LOST, message)
            assignment = await self._assignments.prepare(job, gang.places, generation)
            await self._watch.unless_given_up(gang.assign(generation, assignment))
        except NoRoomError as error:
            return Cancel() if self._watch.is_cancelled else await self._without_room(gang, job, lost, error)
        except RankDiedError as error:
            log.warning("rank_died_again", job=job.id, error=str(error))
        except (ClusterError, OSError) as error:
            log.warning("recovery_interrupted", job=job.id, error=str(error))
            await asyncio.sleep(RETRY_S)
        return None

    async def _without_room(self, gang: RunningGang, job: Job, lost: tuple[int, ...], error: NoRoomError) -> Verdict | None:
        """Go on without the lost ranks where the job may, else from the last checkpoint."""
        left = [place for place in gang.places if place not in lost]
        if len(left) >= job.spec.resources.min_workers:
            await self._resizer.regroup(gang, left, Why.NODE_LOST)
            return None
        if self._watch.is_pausing:
            return Pause(f"{named(lost)} lost without a replacement ({error})")
        verdict = after_gang_lost(await self._watch.restarts())
        return Restart(f"{verdict.message} ({error})") if isinstance(verdict, Restart) else verdict

    async def _give_up(self, to: State, reason: str, message: str) -> None:
        """Leave `starting` without having trained; a cancel that came meanwhile wins."""
        await self._insist(self._dissolve_by_name)
        await self._assignments.discard(self._job)
        if await self._store.jobs.transition(self._job.id, to, from_={State.STARTING}, reason=reason, message=message):
            return
        if not await self._paused():
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
            case Pause(what):
                done = await self._paused(what)
            case Restart(message):
                # Who was asked to pause has come to rest, if from an older checkpoint than it would have written.
                done = await self._paused() or await self._enter(State.QUEUED, RESTART, message, live)
            case _:
                done = False
        if not done:
            await self._cancelled()

    async def _paused(self, what: str = "") -> bool:
        own, job = await self._store.checkpoints.of(self._job.id), await self._store.jobs.get(self._job.id) or self._job
        message = paused(own[0].step if own else None, job.progress.step, what)
        return await self._enter(State.PAUSED, "paused", message, {State.PAUSING})

    async def _cancelled(self) -> None:
        await self._enter(State.CANCELLED, "cancelled_by_user", "every process of the job is gone", {State.CANCELLING})

    async def _enter(self, to: State, reason: str, message: str, from_: frozenset[State] | set[State]) -> bool:
        changed = await self._store.jobs.transition(self._job.id, to, from_=from_, reason=reason, message=message, fence=self._job.fence)
        if changed:
            log.info("job_entered", job=self._job.id, state=to.value, reason=reason, message=message)
        return changed

    async def _find(self) -> RunningGang | None:
        resources = self._job.spec.resources
        return await self._cluster.adopt(
            self._job.id, self._job.attempt, self._job.world_size, cpus=resources.cpus_per_worker, gpus=resources.gpus_per_worker
        )

    async def _dissolve_by_name(self) -> None:
        await self._cluster.dissolve(self._job.id, self._job.attempt)

    async def _insist(self, ask: Callable[[], Awaitable[T]], unless: Callable[[], bool] = lambda: False) -> T | None:
        """Ask the cluster until it answers: silence is never a reason to declare anything. None where it need not be asked any more."""
        is_silent = False
        while not unless():
            try:
                found = await ask()
            except ClusterError as error:
                log.warning("cluster_not_responding", job=self._job.id, error=str(error))
                await self._store.jobs.set_message(self._job.id, NOT_RESPONDING, f"waiting for the cluster: {error}")
                is_silent = True
                await asyncio.sleep(RETRY_S)
            else:
                if is_silent:
                    await self._store.jobs.restore_message(self._job.id)
                return found
        return None
