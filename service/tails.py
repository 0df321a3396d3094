"""The newest events of the jobs that are being followed: read from the store once, however many follow.

Owns one task for each followed job, from its first reader to its last. Stores nothing; who is too slow for what is kept here reads on in
the store (`service.streams`).
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

import structlog

from service.states import TERMINAL
from service.store.errors import DatabaseAwayError
from service.store.records import Event
from service.store.store import Store
from worker.contract import EventType

KEPT: Final = 1000
"""Events of a job that are kept for its readers."""
PAGE: Final = 500
LOOK_S: Final = 15.0
"""How often the store is looked into where nothing is heard of."""
RETRY_S: Final = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, eq=False)
class Told:
    """An event, and what it looks like to readers: rendered once for all who want it in the same form."""

    event: Event
    _rendered: dict[Callable[[Event], bytes], bytes] = field(default_factory=dict)

    def as_(self, form: Callable[[Event], bytes]) -> bytes:
        """Return the event in a form."""
        if form not in self._rendered:
            self._rendered[form] = form(self.event)
        return self._rendered[form]


class Tail:
    """One job's newest events."""

    def __init__(self, job_id: str, after_seq: int) -> None:
        self.job_id = job_id
        self.floor = after_seq
        """Events up to this number are in the store only."""
        self.last_seq = after_seq
        self.is_over = False
        """Nothing follows any more: the job has ended, or is gone."""
        self._kept: deque[Told] = deque()
        self._grown = asyncio.Event()

    def after(self, seq: int) -> list[Told]:
        """Return what is kept after a number that is not below the floor."""
        news = list(takewhile(lambda told: told.event.seq > seq, reversed(self._kept)))
        return news[::-1]

    async def wait(self, seq: int, timeout_s: float) -> bool:
        """Wait until there is something after `seq`, or nothing will be; False after the timeout."""
        if self.last_seq > seq or self.is_over:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._grown.wait()
        return self.last_seq > seq or self.is_over

    def _take(self, page: list[Event], *, is_over: bool) -> None:
        self._kept.extend(Told(event) for event in page)
        while len(self._kept) > KEPT:
            self.floor = self._kept.popleft().event.seq
        if page:
            self.last_seq = page[-1].seq
        self.is_over = self.is_over or is_over
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    async def run(self, store: Store) -> None:
        """Read on until the job is over. Whatever ends it ends the readers' streams too: they ask again, and do not wait for ever."""
        try:
            await self._read_on(store)
        except Exception:
            log.exception("tail_failed", job=self.job_id)
        finally:
            self._take([], is_over=True)

    async def _read_on(self, store: Store) -> None:
        while not self.is_over:
            try:
                # The job first, the events after it: what is stored between the two is found at once, never waited for.
                job = await store.jobs.get(self.job_id)
                while page := await store.events.page(self.job_id, self.last_seq, PAGE):
                    self._take(page, is_over=page[-1].type is EventType.END)
            except DatabaseAwayError as error:
                log.warning("tail_waits_for_the_database", job=self.job_id, error=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            if job is None or job.state in TERMINAL:
                return
            if not self.is_over:
                await store.changes.wait(self.job_id, max(self.last_seq, job.last_seq), LOOK_S)


class Tails:
    """The tails of all followed jobs of this controller."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._running: dict[str, tuple[Tail, asyncio.Task[None], list[object]]] = {}

    @contextlib.asynccontextmanager
    async def of(self, job_id: str, after_seq: int) -> AsyncIterator[Tail]:
        """Lend the tail of a job; where nobody follows it yet, one that begins after `after_seq`."""
        if job_id not in self._running:
            tail = Tail(job_id, after_seq)
            self._running[job_id] = tail, asyncio.create_task(tail.run(self.store), name=f"tail {job_id}"), []
        tail, task, readers = self._running[job_id]
        reader = object()
        readers.append(reader)
        try:
            yield tail
        finally:
            readers.remove(reader)
            if not readers:
                del self._running[job_id]
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
