"""Tests of service/store/database.py, migration.py and store.py."""

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from service.states import State
from service.store.errors import DatabaseError
from service.store.ids import new_job_id
from service.store.store import Store
from service.store.tables import metadata
from tests.service.store.ranks import spec


def test_the_migrations_make_the_tables(with_store):
    """The schema in the code and the one on disk are the same, types aside: the code's are decorated."""

    async def scenario(store):
        def differences(connection):
            return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": False}), metadata)

        async with store._database.read() as connection:
            assert await connection.run_sync(differences) == []

    with_store(scenario)


def test_a_transaction_that_fails_leaves_nothing(with_store):
    """All of a change or none of it, and nobody is woken for nothing."""

    async def scenario(store):
        async def fail():
            async with store._database.write("x") as write:
                await write.connection.execute(text("DELETE FROM jobs"))
                write.newest[job_id] = 99
                raise RuntimeError

        job_id, _ = await store.jobs.create(new_job_id(), spec())
        with pytest.raises(RuntimeError):
            await fail()
        assert await store.jobs.get(job_id) is not None
        assert not await store.changes.wait(job_id, 1, 0.01)

    with_store(scenario)


def test_a_cancelled_writer_leaves_the_store_usable(with_store):
    """A request that is given up in the middle of a write keeps nobody from writing."""

    async def scenario(store):
        for delay in range(20):
            task = asyncio.create_task(store.jobs.create(new_job_id(), spec()))
            await asyncio.sleep(delay / 4000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        job_id, _ = await store.jobs.create(new_job_id(), spec())
        assert await store.jobs.transition(job_id, State.CANCELLED, from_={State.QUEUED}, reason="x")
        for job in await store.jobs.in_states([State.QUEUED]):
            assert job.last_seq == 1

    with_store(scenario)


@pytest.mark.parametrize("url", ["mysql://h/d", "no url", "sqlite://", "sqlite:///:memory:"])
def test_a_database_of_another_kind_is_refused_in_words(url):
    """The operator learns what to set."""
    with pytest.raises(DatabaseError, match="SYNCBN_DATABASE_URL"):
        asyncio.run(Store.open(url))


def test_a_database_of_a_newer_version_is_refused_and_untouched(with_store):
    """Going back a version does not damage anything."""

    async def from_the_future(store):
        async with store._database.write("x") as write:
            await write.connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with_store(from_the_future)
    with pytest.raises(DatabaseError, match="use the version that wrote it"):
        with_store(lambda store: store.ping())
