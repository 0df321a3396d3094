"""Tests of service/store/snapshot.py and query.py: reading past SQLAlchemy sees what reading through it does, at one moment."""

import asyncio
import sqlite3

import pytest
from sqlalchemy import bindparam, func, select

from service.store import driver
from service.store.changes import Changes
from service.store.database import Database
from service.store.ids import new_job_id
from service.store.query import Query, stored
from service.store.sqlite import NUM_READERS
from service.store.store import Store
from service.store.tables import jobs, metadata
from tests.service.store.ranks import spec

COUNT = Query(select(func.count()).select_from(jobs))
OF_STATE = Query(select(*stored(jobs)).where(jobs.c.state == bindparam("state"), jobs.c.priority > -5).order_by(jobs.c.id))


def test_rows_are_those_that_sqlalchemy_finds(database_url):
    """As they are stored: instants in microseconds, JSON as text; values of the statement and of the caller each in their place."""

    async def run():
        async with await Store.open(database_url) as store:
            ids = sorted([(await store.jobs.create(new_job_id(), spec()))[0] for _ in range(3)])
            database = store._database
            async with database.look() as snapshot, database.read() as session:
                rows = await snapshot.rows(OF_STATE, state="queued")
                raw = await session.execute(select(*stored(jobs)).order_by(jobs.c.id))
                assert [tuple(row) for row in rows] == [tuple(row) for row in raw]
                assert [row[0] for row in rows] == ids
                assert await snapshot.rows(OF_STATE, state="failed") == []
            kinds = {name: type(value) for name, value in zip(jobs.c.keys(), rows[0], strict=True)}
            assert (kinds["created_at"], kinds["spec"], kinds["labels"]) == (int, str, str)

    asyncio.run(run())


def test_every_query_of_a_snapshot_sees_the_same_moment(database_url):
    """Whatever is committed in between."""

    async def run():
        async with await Store.open(database_url) as store:
            async with store._database.look() as snapshot:
                assert [tuple(row) for row in await snapshot.rows(COUNT)] == [(0,)]
                await store.jobs.create(new_job_id(), spec())
                assert [tuple(row) for row in await snapshot.rows(COUNT)] == [(0,)]
            async with store._database.look() as snapshot:
                assert [tuple(row) for row in await snapshot.rows(COUNT)] == [(1,)]

    asyncio.run(run())


def test_more_readers_than_connections_take_turns(tmp_path):
    """And one that is cancelled in the middle leaves its connection as good as new."""

    async def run():
        async with await Store.open(f"sqlite:///{tmp_path}/syncbn.db") as store:

            async def look():
                async with store._database.look() as snapshot:
                    await asyncio.sleep(0)
                    return [tuple(row) for row in await snapshot.rows(COUNT)]

            assert await asyncio.gather(*(look() for _ in range(5 * NUM_READERS))) == [[(0,)]] * 5 * NUM_READERS
            broken = [asyncio.create_task(look()) for _ in range(NUM_READERS)]
            await asyncio.sleep(0)
            for one in broken:
                one.cancel()
            await asyncio.gather(*broken, return_exceptions=True)
            assert await asyncio.gather(*(look() for _ in range(2 * NUM_READERS))) == [[(0,)]] * 2 * NUM_READERS

    asyncio.run(run())


def test_a_long_query_does_not_hold_up_the_loop(tmp_path, monkeypatch):
    """It is broken off after a while and begun anew in a thread, where its caller may also give it up."""
    monkeypatch.setattr(driver, "SHORT_STEPS", 1000)
    long = Query(select(func.count()).select_from(jobs.join(jobs.alias(), jobs.c.id != "x").join(jobs.alias(), jobs.c.id != "x")))

    async def run():
        async with await Store.open(f"sqlite:///{tmp_path}/syncbn.db") as store:
            for _ in range(30):
                await store.jobs.create(new_job_id(), spec())

            async def look():
                async with store._database.look() as snapshot:
                    return (await snapshot.rows(long))[0][0]

            looking, turns = asyncio.create_task(look()), 0
            while not looking.done():
                await asyncio.sleep(0)
                turns += 1
            assert looking.result() == 30**3
            assert turns > 1
            given_up = asyncio.create_task(look())
            await asyncio.sleep(0)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            assert await look() == 30**3

    asyncio.run(run())


def test_a_snapshot_writes_nothing(tmp_path):
    """Its connections refuse, so that there is one writer."""

    async def run():
        database = Database.connect(f"sqlite:///{tmp_path}/syncbn.db", Changes())
        async with database.write("x") as write:
            await write.connection.run_sync(metadata.create_all)
        async with database.look() as snapshot:
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                snapshot._connection.open().execute("DELETE FROM jobs")
        await database.close()

    asyncio.run(run())
