"""SQLite's short statements run at once, its long ones aside, and both give the same."""

import asyncio

import pytest
from sqlalchemy import text

from service.store import driver
from service.store.changes import Changes
from service.store.database import Database
from service.store.session import finished

LONG = "SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT i FROM n)"


async def _ticks_during(work) -> int:
    """Count how often the loop comes round while something is done."""
    ticks = 0
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0.001)
        ticks += 1
    await task
    return ticks


@pytest.mark.parametrize(("steps", "is_aside"), [(driver.SHORT_STEPS, True), (10**9, False)])
def test_a_long_query_leaves_the_loop_to_others(tmp_path, monkeypatch, steps, is_aside):
    """A query that reads many rows is given to the thread; where none is too long for the loop, it holds the loop."""
    monkeypatch.setattr(driver, "SHORT_STEPS", steps)

    async def scene():
        database = Database.connect(f"sqlite:///{tmp_path}/a.db", Changes())
        async with database.read() as session:
            assert (await session.execute(text("SELECT 1"))).scalar_one() == 1

            async def long():
                assert (await session.execute(text(LONG))).scalar_one() == 300_000

            ticks = await _ticks_during(long())
        await database.close()
        return ticks

    assert (asyncio.run(scene()) > 3) is is_aside


def test_a_query_that_is_begun_anew_leaves_its_transaction_whole(tmp_path):
    """What was written before a long query in the same transaction is committed with it."""

    async def scene():
        database = Database.connect(f"sqlite:///{tmp_path}/a.db", Changes())
        async with database.write("a") as write:
            await write.connection.execute(text("CREATE TABLE t (x INTEGER)"))
            await write.connection.execute(text("INSERT INTO t VALUES (7)"))
            assert (await write.connection.execute(text(LONG))).scalar_one() == 300_000
        async with database.read() as session:
            found = (await session.execute(text("SELECT x FROM t"))).scalar_one()
        await database.close()
        return found

    assert asyncio.run(scene()) == 7


def test_work_that_waits_is_finished_although_its_caller_is_cancelled():
    """The cancellation comes after the end of the work, whether it waits once or more."""

    async def scene():
        done = []

        async def work():
            await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
            done.append("done")

        task = asyncio.create_task(finished(work(), is_begun_here=True))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return done

    assert asyncio.run(scene()) == ["done"]


def test_an_error_of_work_that_waits_is_its_callers():
    """As it is of work that does not wait."""

    async def scene(*, waits: bool):
        async def work():
            if waits:
                await asyncio.sleep(0)
            raise ValueError("no")

        await finished(work(), is_begun_here=True)

    for waits in (False, True):
        with pytest.raises(ValueError, match="no"):
            asyncio.run(scene(waits=waits))
