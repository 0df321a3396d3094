"""Reads a gang until something is to be done: one long poll open per rank, every event stored before the next is asked for.

Owns the deadlines of a running attempt (cancel, timeout_s). Stores events and the steps from `starting` and `recovering` to `running`;
changes no other state and ends no process.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog

from service.cluster import ClusterError, RankDiedError, RunningGang
from service.pausing import is_unbegun_overdue, is_unhurried, overdue
from service.retrying import (
    GATHER_S,
    Budget,
    Cancel,
    Pause,
    RankEnd,
    Ranks,
    Replace,
    Resize,
    Verdict,
    Wait,
    after_parting,
    explained,
    judge,
    timed_out,
)
from service.stalling import SILENT_S, Heard, Sighting, parted, stalled
from service.states import State
from service.store.records import Job
from service.store.store import Store
from worker.contract import Drain, EventType

CANCEL_GRACE_S = 4.0
"""How long ranks may take to come to the end of a step after a cancel."""
RETRY_S = 1.0
"""Pause before polling a rank again that did not answer."""
NOT_RESPONDING = "not_responding"
"""Reason of a job whose cluster or ranks do not answer: a condition, not a state."""
BATCH_S = 0.1
"""Shortest time between two polls of a rank, so that a fast one is stored in batches and not one disk write per step."""
LOOK_S = 0.5
"""How often deadlines are looked at when nothing happens."""
RESTART = "restart"
"""Why a job is queued again whose gang was lost."""
_NOT_AT_WORK = frozenset({"", "starting", "parked"})

log = structlog.get_logger()

T = TypeVar("T")


class Watch:
    """The watch over one attempt."""

    def __init__(self, store: Store, job: Job) -> None:
        self._store = store
        self._job = job
        self._ends: dict[int, RankEnd] = {}
        self._standings: dict[int, tuple[int, str]] = {}
        self._heard: dict[int, Sighting] = {}
        self._unheard: set[int] = set()
        """Ranks that did not answer the last question."""
        self.stalled: dict[int, str] = {}
        """What ranks that hold up the others do, for people, in the present generation."""
        self._parted_at: int | None = None
        """The step in which the ranks last waited for each other in different places."""
        self._generation = 0
        self._unsettled_since: float | None = None
        self._began = 0.0
        self._changed = asyncio.Event()
        self._has_worked = False
        self._pausing_since = time.monotonic() if job.state is State.PAUSING else None
        self.is_cancelled = job.state is State.CANCELLING
        self.resize: Resize | None = None
        """What is to be returned as soon as all ranks train."""

    def pause(self) -> None:
        """Have `until_decided` ask the ranks to pause, and tell when they have."""
        if self._pausing_since is None:
            self._pausing_since = time.monotonic()
        self._changed.set()

    def cancel(self) -> None:
        """Have `until_decided` stop the ranks and return Cancel."""
        self.is_cancelled = True
        self._changed.set()

    @property
    def is_pausing(self) -> bool:
        """Whether the job is to pause."""
        return self._pausing_since is not None

    @property
    def pausing_s(self) -> float:
        """For how long it has been so, as far as this controller knows and as it counts; 0 where it is not."""
        return 0.0 if self._pausing_since is None else time.monotonic() - self._pausing_since

    @property
    def is_ending(self) -> bool:
        """Whether the job is not wanted to train any more."""
        return self.is_cancelled or self.is_pausing

    @property
    def has_begun(self) -> bool:
        """Whether a rank has trained in this attempt, as far as this controller knows."""
        return self._has_worked or self._job.running_since is not None

    @property
    def is_given_up(self) -> bool:
        """Whether ranks that do not answer are waited for no longer: the job is to end, and there is nothing for them to save."""
        return self.is_cancelled or is_unbegun_overdue(self.pausing_s, has_begun=self.has_begun)

    async def unless_given_up(self, asking: Coroutine[Any, Any, T]) -> T | None:
        """Return what ranks are asked or told; None where it is not waited for any longer: who does not listen holds up no end."""
        async with _together([asking]) as [task]:
            while not (task.done() or self.is_given_up):
                await asyncio.wait([task], timeout=LOOK_S)
            return task.result() if task.done() else None

    async def until_decided(self, gang: RunningGang, meanwhile: asyncio.Task[Any] | None = None) -> Verdict:
        """Read every rank until the attempt is decided or cancelled, or ranks are to be replaced. The gang is left as it is.

        Args:
            gang: the ranks.
            meanwhile: preparations for a resize: no other is begun, and when they are done, the verdict is Wait as soon as all ranks train.
        Raises:
            Whatever the store raises: the attempt can be watched again from where it was.
        """
        self._ends, self._standings, self._unsettled_since, self._generation = {}, {}, None, gang.generation
        self._heard, self.stalled, self._began = {}, {}, time.monotonic()
        self._job = await self._fresh()
        # What an earlier controller may have shown; a state that begins brings a reason of its own.
        self._unheard = set(gang.places) if self._job.reason == NOT_RESPONDING else set()
        cursors = await self._store.events.cursors(self._job.id, self._job.attempt)
        said = await self.last_words()
        recoveries, restarts = await self._budgets()
        is_pause_passed_on = False
        async with _together(self._read(gang, rank, cursors.get(rank, 0), said.get(rank)) for rank in gang.places) as readers:
            while isinstance(verdict := self._verdict(gang, recoveries, restarts, meanwhile), Wait):
                if meanwhile is not None and meanwhile.done() and self._is_training(gang):
                    break
                if self.is_pausing and not is_pause_passed_on:
                    is_pause_passed_on = await self._pass_on_pause(gang)
                await self._change(readers)
            if isinstance(verdict, Cancel):
                await self._stop(gang, readers)
        return verdict

    async def last_words(self) -> dict[int, RankEnd]:
        """Return how ranks ended that said so, as far as it is on record."""
        said = await self._store.events.last_words(self._job.id, self._job.attempt)
        return {rank: RankEnd.model_validate(data) for rank, data in said.items()}

    async def aftermath(self, said: Mapping[int, RankEnd]) -> Verdict:
        """Decide what follows where every process is gone: who is not among the last words died.

        A controller that is killed once the gang is dissolved leaves nothing but these.
        """
        ends = dict(said)
        for place in range(self._job.world_size):
            if len(ends) < self._job.world_size:
                ends.setdefault(place, RankEnd(outcome="died"))
        return judge(Ranks(self._job.world_size, ends, unsettled_s=math.inf), *await self._budgets())

    async def restarts(self) -> Budget:
        """Return the budget of restarts of the whole gang."""
        history = (await self._store.jobs.transitions_of([self._job.id]))[self._job.id]
        used = sum(entry.state is State.QUEUED and entry.reason == RESTART for entry in history)
        return Budget(used, self._job.spec.retries.restarts)

    async def _budgets(self) -> tuple[Budget, Budget]:
        used = await self._store.recoveries.used(self._job.id)
        return Budget(used, self._job.spec.retries.recoveries), await self.restarts()

    def _verdict(self, gang: RunningGang, recoveries: Budget, restarts: Budget, meanwhile: asyncio.Task[Any] | None) -> Verdict:
        if self.is_cancelled:
            return Cancel()
        heard = {rank: sighting.heard(time.monotonic()) for rank, sighting in self._heard.items()}
        self._look_for_stalled(heard, len(gang.places))
        parked = {rank for rank, standing in self._standings.items() if standing == (self._generation, "parked")}
        if not (self._ends or parked or gang.is_torn):
            self._unsettled_since = None
        elif self._unsettled_since is None:
            self._unsettled_since = time.monotonic()
        unsettled_s = 0.0 if self._unsettled_since is None else time.monotonic() - self._unsettled_since
        ranks = Ranks(len(gang.places), self._ends, parked, self._silent(gang.places), gang.is_torn, unsettled_s)
        verdict = explained(judge(ranks, recoveries, restarts), self.stalled)
        if isinstance(verdict, Wait) and (found := parted(heard, len(gang.places))) is not None:
            step, where = found
            verdict, self._parted_at = after_parting(where, is_again=step == self._parted_at, recoveries=recoveries), step
        if isinstance(verdict, Wait):
            verdict = timed_out(self._job.ran_s(datetime.now(UTC)), self._job.spec.timeout_s)
        if isinstance(verdict, Wait | Replace) and self.is_pausing and (what := self._overdue(heard, gang.places)):
            return Pause(what)
        if isinstance(verdict, Wait) and meanwhile is None:
            return self._due_resize(gang) or verdict
        return verdict

    def _due_resize(self, gang: RunningGang) -> Resize | None:
        if self.resize is None or self.resize.workers == len(gang.places) or self.is_pausing or not self._is_training(gang):
            return None
        return self.resize

    def _is_training(self, gang: RunningGang) -> bool:
        """Return whether every rank is at its steps, and not at an evaluation that a new group would have to do again."""
        return all(self._standings.get(rank) == (self._generation, "training") for rank in gang.places)

    def _look_for_stalled(self, heard: dict[int, Heard], world_size: int) -> None:
        """Take ranks that hold up the others for lost."""
        for rank, what in stalled(heard, world_size).items():
            if rank not in self._ends:
                log.warning("rank_stalled", job=self._job.id, rank=rank, what=what)
                self.stalled[rank] = what
                self._end(rank, RankEnd(outcome="stalled"))

    def _silent(self, places: Iterable[int]) -> set[int]:
        """Return the ranks that have not ended and have not been heard for a while. All were heard just before the watch began."""
        since = time.monotonic() - SILENT_S
        heard = {rank: sighting.at for rank, sighting in self._heard.items()}
        return {rank for rank in places if rank not in self._ends and heard.get(rank, self._began) < since}

    def _overdue(self, heard: dict[int, Heard], places: Iterable[int]) -> str:
        """Return why the pause is not waited for any longer; nothing while it is."""
        unheard = Heard(time.monotonic() - self._began, None)
        phases = {rank: phase for rank, (generation, phase) in self._standings.items() if generation == self._generation}
        left = {rank: heard.get(rank, unheard) for rank in places if rank not in self._ends}
        if is_unhurried(left, phases):
            self._pausing_since = time.monotonic()
        return overdue(left, self.pausing_s, has_begun=self.has_begun)

    async def _change(self, readers: list[asyncio.Task[None]]) -> None:
        """Wait until something may have changed, and pass on what a reader raised."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S if self._ends else LOOK_S):
                await self._changed.wait()
        self._changed.clear()
        for reader in readers:
            if reader.done():
                reader.result()

    async def _pass_on_pause(self, gang: RunningGang) -> bool:
        try:
            await gang.pause()
        except ClusterError as error:
            log.warning("pause_not_passed_on", job=self._job.id, error=str(error))
            return False
        return True

    async def _stop(self, gang: RunningGang, readers: list[asyncio.Task[None]]) -> None:
        with contextlib.suppress(ClusterError):
            await gang.stop()
        await asyncio.wait(readers, timeout=CANCEL_GRACE_S)

    async def _read(self, gang: RunningGang, rank: int, stored_seq: int, said: RankEnd | None) -> None:
        """Store what one rank says until it has said its last word or is dead. `said`: its last word that was stored before, if any."""
        # One event back: the last word is never acknowledged, so a rank that ended while nobody watched says it again.
        after_seq = max(stored_seq - 1, 0)
        while rank not in self._ends:
            try:
                drain = await gang.drain(rank, after_seq)
            except RankDiedError as error:
                log.warning("rank_died", job=self._job.id, rank=rank, error=str(error))
                await self._hear(rank)
                self._end(rank, said or RankEnd(outcome="died"))
            except ClusterError as error:
                log.warning("rank_not_responding", job=self._job.id, rank=rank, error=str(error))
                await self._miss(rank, error)
                await asyncio.sleep(RETRY_S)
            else:
                await self._hear(rank)
                after_seq = await self._take(rank, drain, after_seq)
                await asyncio.sleep(BATCH_S)

    async def _miss(self, rank: int, error: ClusterError) -> None:
        """Show that a rank does not answer: a condition, which changes no state."""
        if not self._unheard:
            await self._store.jobs.set_message(self._job.id, NOT_RESPONDING, f"rank {rank} does not answer: {error}")
        self._unheard.add(rank)

    async def _hear(self, rank: int) -> None:
        if rank in self._unheard:
            self._unheard.remove(rank)
            if not self._unheard:
                await self._store.jobs.restore_message(self._job.id)

    async def _take(self, rank: int, drain: Drain, after_seq: int) -> int:
        reading = drain.reading if drain.generation == self._generation else None
        self._heard[rank] = Sighting.after(self._heard.get(rank), reading, time.monotonic())
        if drain.events:
            await self._store.events.ingest(self._job.id, self._job.attempt, rank, drain.events, self._job.fence)
        await self._note(rank, drain)
        if not drain.events:
            return after_seq
        last = drain.events[-1]
        if last.type is EventType.END:
            self._end(rank, RankEnd.model_validate(last.data))
        return last.seq

    async def _note(self, rank: int, drain: Drain) -> None:
        """Take notice of what a rank does now, and of what that means for the job's state."""
        standing = (drain.generation, drain.phase)
        if self._standings.get(rank) == standing:
            return
        self._standings[rank] = standing
        self._changed.set()
        at_work = [generation == self._generation and phase not in _NOT_AT_WORK for generation, phase in self._standings.values()]
        self._has_worked |= any(at_work)
        if self._job.state is State.STARTING and any(at_work):
            await self._enter_running("training", f"training on {self._job.world_size} workers")
        elif self._job.state is State.RECOVERING and all(at_work) and len(at_work) == self._job.world_size:
            since = (await self._store.jobs.transitions_of([self._job.id]))[self._job.id][-1].at
            took_s = (datetime.now(UTC) - since).total_seconds()
            await self._enter_running("recovered", f"going on with {self._job.world_size} workers after {took_s:.1f} s")

    async def _enter_running(self, reason: str, message: str) -> None:
        await self._store.jobs.transition(
            self._job.id, State.RUNNING, from_={self._job.state}, reason=reason, message=message, fence=self._job.fence
        )
        self._job = await self._fresh()

    async def _fresh(self) -> Job:
        """Return the job as it stands now, unless it has another attempt by now."""
        fresh = await self._store.jobs.get(self._job.id)
        return fresh if fresh is not None and fresh.fence == self._job.fence else self._job

    def _end(self, rank: int, end: RankEnd) -> None:
        self._ends[rank] = end
        self._changed.set()


@contextlib.asynccontextmanager
async def _together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> AsyncIterator[list[asyncio.Task[T]]]:
    """Run coroutines as tasks inside the block, and end them with it."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
