"""Tests of service/store/changes.py."""

import asyncio

from service.store.changes import Changes


def test_who_read_before_the_change_does_not_wait():
    """What came between reading and waiting is not missed."""

    async def scenario():
        changes = Changes()
        changes.publish("job", 5)
        assert await changes.wait("job", 4, 60)
        assert not await changes.wait("job", 5, 0.01)

    asyncio.run(scenario())


def test_all_who_wait_for_a_job_are_woken_and_no_others():
    """One event wakes every reader of its job."""

    async def scenario():
        changes = Changes()
        mine = [asyncio.create_task(changes.wait("mine", 0, 60)) for _ in range(3)]
        other = asyncio.create_task(changes.wait("other", 0, 0.05))
        await asyncio.sleep(0)
        changes.publish("mine", 1)
        assert await asyncio.gather(*mine) == [True] * 3
        assert not await other
        assert changes._waiting == {}

    asyncio.run(scenario())


def test_a_deleted_job_wakes_its_readers():
    """They look, and find it gone."""

    async def scenario():
        changes = Changes()
        waiting = asyncio.create_task(changes.wait("job", 0, 60))
        await asyncio.sleep(0)
        changes.forget("job")
        assert await waiting

    asyncio.run(scenario())
