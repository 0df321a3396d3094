"""Reads a gang until its attempt is decided: one long poll open per rank, every event stored before the next is asked for.

Owns the deadlines of a running attempt (cancel, timeout_s). Stores events and the step from `starting` to `running`; changes no
other state and ends no process.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any

import structlog

from service.cluster import ClusterError, RankDiedError, RunningGang
from service.retrying import Cancel, RankEnd, Verdict, Wait, judge, timed_out
from service.states import State
from service.store.records import Job
from service.store.store import Store
from worker.contract import Drain, EventType

CANCEL_GRACE_S = 5.0
"""How long ranks may take to come to the end of a step after a cancel."""
RETRY_S = 1.0
"""Pause before polling a rank again that did not answer."""
BATCH_S = 0.1
"""Shortest time between two polls of a rank, so that a fast one is stored in batches and not one disk write per step."""
LOOK_S = 0.5
"""How often deadlines are looked at when nothing happens."""

log = structlog.get_logger()


class Watch:
    """The watch over one attempt."""

    def __init__(self, store: Store, job: Job) -> None:
        self._store = store
        self._job = job
        self._ends: dict[int, RankEnd] = {}
        self._first_end = 0.0
        self._changed = asyncio.Event()
        self._is_running = job.state is not State.STARTING
        self.is_cancelled = job.state is State.CANCELLING

    def cancel(self) -> None:
        """Have `until_decided` stop the ranks and return Cancel."""
        self.is_cancelled = True
        self._changed.set()

    async def until_decided(self, gang: RunningGang) -> Verdict:
        """Read every rank until the attempt is decided or cancelled. The gang is left as it is.

        Raises:
            Whatever the store raises: the attempt can be watched again from where it was.
        """
        cursors = await self._store.events.cursors(self._job.id, self._job.attempt)
        async with _together(self._read(gang, rank, cursors.get(rank, 0)) for rank in range(gang.world_size)) as readers:
            while True:
                verdict = self._verdict(gang.world_size)
                if not isinstance(verdict, Wait):
                    break
                await self._change(readers)
            if isinstance(verdict, Cancel):
                await self._stop(gang, readers)
        return verdict

    def _verdict(self, world_size: int) -> Verdict:
        if self.is_cancelled:
            return Cancel()
        since_first_end_s = time.monotonic() - self._first_end if self._ends else 0.0
        verdict = judge(self._ends, world_size, since_first_end_s)
        if isinstance(verdict, Wait) and self._job.started_at is not None:
            return timed_out((datetime.now(UTC) - self._job.started_at).total_seconds(), self._job.spec.timeout_s)
        return verdict

    async def _change(self, readers: list[asyncio.Task[None]]) -> None:
        """Wait until something may have changed, and pass on what a reader raised."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), LOOK_S)
        self._changed.clear()
        for reader in readers:
            if reader.done():
                reader.result()

    async def _stop(self, gang: RunningGang, readers: list[asyncio.Task[None]]) -> None:
        with contextlib.suppress(ClusterError):
            await gang.stop()
        await asyncio.wait(readers, timeout=CANCEL_GRACE_S)

    async def _read(self, gang: RunningGang, rank: int, stored_seq: int) -> None:
        """Store what one rank says until it has said its last word or is dead."""
        # One event back: the last word is never acknowledged, so a rank that ended while nobody watched says it again.
        after_seq = max(stored_seq - 1, 0)
        while rank not in self._ends:
            try:
                drain = await gang.drain(rank, after_seq)
            except RankDiedError as error:
                log.warning("rank_died", job=self._job.id, rank=rank, error=str(error))
                self._end(rank, RankEnd(outcome="died"))
            except ClusterError as error:
                log.warning("rank_not_responding", job=self._job.id, rank=rank, error=str(error))
                await asyncio.sleep(RETRY_S)
            else:
                after_seq = await self._take(rank, drain, after_seq)
                await asyncio.sleep(BATCH_S)

    async def _take(self, rank: int, drain: Drain, after_seq: int) -> int:
        if not drain.events:
            return after_seq
        await self._store.events.ingest(self._job.id, self._job.attempt, rank, drain.events, self._job.fence)
        if not self._is_running and any(event.data.get("phase") == "training" for event in drain.events):
            await self._enter_running()
        last = drain.events[-1]
        if last.type is EventType.END:
            self._end(rank, RankEnd.model_validate(last.data))
        return last.seq

    async def _enter_running(self) -> None:
        self._is_running = True
        message = f"training on {self._job.world_size} workers"
        await self._store.jobs.transition(
            self._job.id, State.RUNNING, from_={State.STARTING}, reason="training", message=message, fence=self._job.fence
        )
        fresh = await self._store.jobs.get(self._job.id)
        self._job = fresh if fresh is not None and fresh.fence == self._job.fence else self._job

    def _end(self, rank: int, end: RankEnd) -> None:
        self._first_end = self._first_end if self._ends else time.monotonic()
        self._ends[rank] = end
        self._changed.set()


@contextlib.asynccontextmanager
async def _together(coroutines: Iterable[Coroutine[Any, Any, None]]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run coroutines as tasks inside the block, and end them with it."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
