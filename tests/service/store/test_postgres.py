"""Tests of service/store/postgres.py: several controllers on one database, and a server that goes away."""

import asyncio
import time

import pytest
from sqlalchemy import text

from service.states import State
from service.store.errors import DatabaseAwayError
from service.store.ids import new_job_id
from service.store.records import IdempotencyClaim
from service.store.store import Store
from tests.service.store.ranks import said, spec
from worker.contract import EventType


@pytest.fixture
def database_url(postgres) -> str:
    """A database on the server."""
    return postgres.new_database()


def _run(scenario, database_url: str, num_stores: int = 2) -> None:
    async def whole():
        stores = await asyncio.gather(*(Store.open(database_url) for _ in range(num_stores)))
        try:
            await asyncio.wait_for(scenario(*stores), 60)
        finally:
            await asyncio.gather(*(store.close() for store in stores))

    asyncio.run(whole())


def test_controllers_migrate_at_once(database_url):
    """Eight open an empty database together: one makes the tables, all find them."""

    async def scenario(*stores):
        await asyncio.gather(*(store.ping() for store in stores))

    _run(scenario, database_url, 8)


def test_an_event_stored_by_one_controller_wakes_the_readers_of_another(database_url):
    """A stream may be served by any controller."""

    async def scenario(first, second):
        job_id, _ = await first.jobs.create(new_job_id(), spec())
        await first.attempts.begin(job_id, "first", 2)
        seen = (await second.events.page(job_id, 0, 10))[-1].seq
        waiting = asyncio.create_task(second.changes.wait(job_id, seen, 30))
        began = time.monotonic()
        await first.events.ingest(job_id, 1, 0, [said(1, EventType.LOG, message="hello")], 1)
        assert await waiting
        assert time.monotonic() - began < 5
        assert (await second.events.page(job_id, seen, 10))[0].data == {"message": "hello"}

    _run(scenario, database_url)


def test_a_job_submitted_to_one_wakes_the_reconciler_of_another(database_url):
    """Whoever takes the submission, whoever is free may run it."""

    async def scenario(first, second):
        await asyncio.sleep(0.3)  # the listener's first words wake everybody
        second.changes.jobs.clear()
        await first.jobs.create(new_job_id(), spec())
        await asyncio.wait_for(second.changes.jobs.wait(), 5)

    _run(scenario, database_url)


def test_twins_with_one_key_make_one_job_through_different_controllers(database_url):
    """The same request, sent at once to three controllers ten times each, is one job."""

    async def scenario(*stores):
        claim = IdempotencyClaim("key", "fingerprint")
        made = await asyncio.gather(*(store.jobs.create(new_job_id(), spec(), claim) for store in stores for _ in range(10)))
        assert len({job_id for job_id, _ in made}) == 1
        assert sum(is_new for _, is_new in made) == 1

    _run(scenario, database_url, 3)


def test_one_of_many_begins_an_attempt_and_events_have_no_gaps(database_url):
    """Two controllers that act on one job at once: one attempt, one order of events."""

    async def scenario(first, second):
        job_id, _ = await first.jobs.create(new_job_id(), spec())
        begun = await asyncio.gather(*(store.attempts.begin(job_id, "first", 2) for store in (first, second) * 5))
        assert [attempt.fence for attempt in begun if attempt is not None] == [1]
        batches = [[said(seq, EventType.LOG, message="m") for seq in range(1, 6)] for _ in range(8)]
        stores = [first, second] * 4
        await asyncio.gather(*(store.events.ingest(job_id, 1, rank, batches[rank], 1) for rank, store in enumerate(stores)))
        assert [event.seq for event in await second.events.page(job_id, 0, 100)] == list(range(1, 2 + 40 + 1))

    _run(scenario, database_url)


def test_a_server_that_is_killed_is_away_and_loses_nothing(mortal_postgres):
    """While it is away every call says so within seconds; after its restart everything acknowledged is there, and readers are woken."""

    async def scenario(store, _other):
        job_ids = [(await store.jobs.create(new_job_id(), spec()))[0] for _ in range(5)]
        await asyncio.to_thread(mortal_postgres.kill)
        began = time.monotonic()
        with pytest.raises(DatabaseAwayError):
            await store.jobs.create(new_job_id(), spec())
        with pytest.raises(DatabaseAwayError):
            await store.jobs.get(job_ids[0])
        assert time.monotonic() - began < 12
        waiting = asyncio.create_task(store.changes.wait(job_ids[0], 1, 30))
        await asyncio.to_thread(mortal_postgres.start)
        assert await waiting
        assert {job.id for job in await store.jobs.in_states([State.QUEUED])} == set(job_ids)
        await store.jobs.create(new_job_id(), spec())

    _run(scenario, mortal_postgres.new_database())


def test_a_slow_statement_is_waited_for(database_url):
    """The driver's own time limits are not taken for a cancellation by the caller."""

    async def scenario(store, _other):
        async with store._database.write("x") as write:
            await write.connection.execute(text("SELECT pg_sleep(1.2)"))

    _run(scenario, database_url)
