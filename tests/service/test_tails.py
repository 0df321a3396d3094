"""Tests of service/tails.py and service/streams.py: a thousand readers cost the store what one does, and all hear everything."""

import asyncio

from service import tails as tails_module
from service.states import State
from service.store.ids import new_job_id
from service.streams import StreamFilter, follow
from service.tails import Tails
from tests.service.store.ranks import said, spec
from worker.contract import EventType

EVERYTHING = StreamFilter()


async def _started(store) -> str:
    job_id, _ = await store.jobs.create(new_job_id(), spec())
    await store.attempts.begin(job_id, "first", 2)
    return job_id


def _lines(first: int, last: int):
    return [said(seq, EventType.LOG, message=f"line {seq}") for seq in range(first, last + 1)]


async def _read(store, tails, job_id, *, after=0, wanted=EVERYTHING, pause=None, heard=None) -> list[int]:
    heard = [] if heard is None else heard
    async for told in follow(tails, await store.jobs.get(job_id), after, wanted, 30):
        if told is not None:
            heard.append(told.event.seq)
        if pause is not None:
            await pause(len(heard))
    return heard


def test_many_readers_hear_everything_and_the_store_is_read_once(with_store, monkeypatch):
    """From the beginning or from the middle: every event once, in order, to the end."""

    async def scenario(store):
        job_id, tails = await _started(store), Tails(store)
        await store.events.ingest(job_id, 1, 0, _lines(1, 10), 1)
        heads = [[] for _ in range(200)]
        readers = [
            asyncio.create_task(_read(store, tails, job_id, after=8 * (number % 2), heard=heard)) for number, heard in enumerate(heads)
        ]
        history = (await store.jobs.get(job_id)).last_seq
        while not all(heard and heard[-1] == history for heard in heads):
            await asyncio.sleep(0.01)
        pages = []
        page = store.events.page

        async def counted(*args, **kwargs):
            pages.append(args)
            return await page(*args, **kwargs)

        monkeypatch.setattr(store.events, "page", counted)
        for first in range(11, 61, 10):
            await store.events.ingest(job_id, 1, 0, _lines(first, first + 9), 1)
            await asyncio.sleep(0.01)
        await store.jobs.transition(job_id, State.FAILED, from_={State.STARTING}, reason="over")
        last = (await store.jobs.get(job_id)).last_seq
        for number, heard in enumerate(await asyncio.gather(*readers)):
            assert heard == list(range(8 * (number % 2) + 1, last + 1))
        assert len(pages) <= 40
        assert tails._running == {}

    with_store(scenario)


def test_a_reader_that_is_too_slow_reads_on_in_the_store(with_store, monkeypatch):
    """What is kept is bounded; what is heard is not."""
    monkeypatch.setattr(tails_module, "KEPT", 20)

    async def scenario(store):
        job_id, tails = await _started(store), Tails(store)
        may_go_on = asyncio.Event()

        async def pause(_number):
            await may_go_on.wait()

        slow = asyncio.create_task(_read(store, tails, job_id, pause=pause))
        quick = asyncio.create_task(_read(store, tails, job_id))
        await asyncio.sleep(0.05)
        for first in range(1, 201, 50):
            await store.events.ingest(job_id, 1, 0, _lines(first, first + 49), 1)
            await asyncio.sleep(0.01)
        await store.jobs.transition(job_id, State.FAILED, from_={State.STARTING}, reason="over")
        everything = await quick
        may_go_on.set()
        assert await slow == everything == list(range(1, len(everything) + 1))

    with_store(scenario)


def test_a_filtered_stream_has_its_rank_and_the_end(with_store):
    """Also where others speak all the time."""

    async def scenario(store):
        job_id, tails = await _started(store), Tails(store)
        await store.events.ingest(job_id, 1, 0, _lines(1, 5), 1)
        wanted = StreamFilter((EventType.LOG, EventType.END), rank=1)
        reader = asyncio.create_task(_read(store, tails, job_id, wanted=wanted))
        await asyncio.sleep(0.05)
        await store.events.ingest(job_id, 1, 1, _lines(1, 2), 1)
        await store.events.ingest(job_id, 1, 0, _lines(6, 9), 1)
        await store.jobs.transition(job_id, State.FAILED, from_={State.STARTING}, reason="over")
        events = [event for event in await store.events.page(job_id, 0, 100) if wanted.has(event)]
        assert await reader == [event.seq for event in events]
        assert [event.rank for event in events] == [1, 1, None]

    with_store(scenario)


def test_a_silent_stream_beats(with_store):
    """A reader learns that it is still connected, also while what it does not want comes in all the time."""

    async def scenario(store):
        job_id, tails = await _started(store), Tails(store)
        beats = 0
        job = await store.jobs.get(job_id)
        async for told in follow(tails, job, job.last_seq, StreamFilter(rank=7), 0.02):
            assert told is None
            beats += 1
            await store.events.ingest(job_id, 1, 0, _lines(beats, beats), 1)
            if beats == 5:
                break

    with_store(scenario)


def test_a_fault_ends_the_streams_instead_of_letting_them_wait(with_store, monkeypatch):
    """A reader whose stream ends asks again; one that hears nothing but heartbeats waits for ever."""

    async def scenario(store):
        async def broken(*_args, **_kwargs):
            raise RuntimeError("a fault")

        job_id, tails = await _started(store), Tails(store)
        reader = asyncio.create_task(_read(store, tails, job_id))
        await asyncio.sleep(0.05)
        monkeypatch.setattr(store.events, "page", broken)
        await store.events.ingest(job_id, 1, 0, _lines(1, 1), 1)
        await asyncio.wait_for(reader, 5)
        assert tails._running == {}

    with_store(scenario)
