"""Live streams of a job's events: reads what is stored, waits for more, says something at least every heartbeat, and ends with the job."""

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from service.errors import TooManyStreamsError
from service.states import TERMINAL
from service.store.records import Event
from service.store.store import Store
from worker.contract import EventType

PAGE: Final = 500


@dataclass(frozen=True)
class StreamFilter:
    """Which events a stream has; `end` is always among them."""

    types: Collection[EventType] = ()
    rank: int | None = None


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


async def follow(store: Store, job_id: str, after_seq: int, wanted: StreamFilter, heartbeat_s: float) -> AsyncIterator[Event | None]:
    """Yield the events of a job after `after_seq`, oldest first, then each as it is stored.

    Yields None where nothing has happened for `heartbeat_s`. Ends after the job's `end`, or when the job is deleted.
    """
    while True:
        # The job first, the events after it: what is stored between the two is found at once, never waited for.
        job = await store.jobs.get(job_id)
        if job is None:
            return
        while page := await store.events.page(job_id, after_seq, PAGE, types=wanted.types, rank=wanted.rank):
            for event in page:
                yield event
                if event.type is EventType.END:
                    return
            after_seq = page[-1].seq
        if job.state in TERMINAL:
            return
        if not await store.changes.wait(job_id, max(after_seq, job.last_seq), heartbeat_s):
            yield None
