"""Live streams of a job's events: what is stored, then what comes, something at least every heartbeat, and an end with the job's."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.errors import TooManyStreamsError
from service.needle import Needle
from service.store.records import Event, Job
from service.store.store import Store
from service.tails import PAGE, Tails, Told
from worker.contract import EventType


@dataclass(frozen=True)
class StreamFilter:
    """Which events a stream has; `end` is always among them, and what says that events are missing."""

    types: Collection[EventType] = ()
    rank: int | None = None
    needle: Needle | None = None
    """What log lines contain."""

    def has(self, event: Event) -> bool:
        """Return whether the stream has an event."""
        if event.type in {EventType.END, EventType.GAP}:
            return True
        is_of_these = (not self.types or event.type in self.types) and (self.rank is None or event.rank == self.rank)
        return is_of_these and (self.needle is None or self.needle.is_in(event.message))


class StreamPlaces:
    """How many streams may be open at once, in all and of one token. A stream holds a connection for as long as a job lives."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._taken: Counter[str] = Counter()

    @property
    def num_taken(self) -> int:
        """How many are open."""
        return self._taken.total()

    def check(self, token_id: str) -> None:
        """Raise TooManyStreamsError where every place is taken, or every place that one token may have."""
        for taken, most, of in ((self.num_taken, self._most, ""), (self._taken[token_id], self._most_of_one, " of this token")):
            if taken >= most:
                detail = f"{taken} streams{of} are open; expected at most {most}; close one or try again"
                raise TooManyStreamsError(detail, headers={"Retry-After": "5"})

    @contextmanager
    def taken(self, token_id: str) -> Iterator[None]:
        """Hold a place."""
        self._taken[token_id] += 1
        try:
            yield
        finally:
            self._taken[token_id] -= 1


async def follow(tails: Tails, job: Job, after_seq: int, wanted: StreamFilter, heartbeat_s: float) -> AsyncIterator[Told | None]:
    """Yield the events of a job after `after_seq`, oldest first, then each as it is stored.

    Yields None where nothing was yielded for `heartbeat_s`. Ends after the job's `end`, or when the job is deleted.
    """
    clock = asyncio.get_running_loop().time
    async with tails.of(job.id, max(after_seq, job.last_seq)) as tail:
        said_at = clock()
        while True:
            # History, and what a reader was too slow for, is read from the store by whoever wants it; the rest is there already.
            news = await _stored(tails.store, job.id, after_seq, wanted) if after_seq < tail.floor else tail.after(after_seq)
            for told in news:
                after_seq = told.event.seq
                if wanted.has(told.event):
                    yield told
                    said_at = clock()
                if told.event.type is EventType.END:
                    return
            if not news:
                if after_seq < tail.floor:
                    after_seq = tail.floor  # nothing that is wanted until there
                elif tail.is_over:
                    return
                else:
                    await tail.wait(after_seq, max(0.0, said_at + heartbeat_s - clock()))
            if clock() - said_at >= heartbeat_s:
                yield None
                said_at = clock()


async def _stored(store: Store, job_id: str, after_seq: int, wanted: StreamFilter) -> list[Told]:
    return [Told(event) for event in await store.events.page(job_id, after_seq, PAGE, types=wanted.types, rank=wanted.rank)]
