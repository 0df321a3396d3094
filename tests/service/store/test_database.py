"""Tests of service/store/database.py, migration.py and store.py."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, make_url, text

from service.quotas import Quota
from service.states import State
from service.store import migration
from service.store.errors import DatabaseError
from service.store.ids import new_job_id
from service.store.store import Store
from service.store.tables import metadata
from tests.service.store.ranks import manifest, spec


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


@contextmanager
def _of_revision(database_url: str, revision: str) -> Iterator[Connection]:
    """Make a database as an earlier version had it, to be filled."""
    url = make_url(database_url)
    engine = create_engine(url.set(drivername="sqlite" if url.get_backend_name() == "sqlite" else "postgresql+psycopg"))
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(migration._SCRIPTS))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        yield connection
    engine.dispose()


def _insert_job(connection: Connection, job_id: str, document: Any = None, **changes: Any) -> None:
    job = dict.fromkeys(("labels", "progress", "metrics"), "{}") | dict.fromkeys(("priority", "world_size", "fence", "attempt"), 0)
    job |= {"id": job_id, "name": "t", "state": "queued", "reason": "", "message": "", "created_at": 1, "last_seq": 0, "edition": 1}
    job |= {"spec": (document or spec()).model_dump_json()} | changes
    connection.execute(text(f"INSERT INTO jobs ({', '.join(job)}) VALUES ({', '.join(':' + name for name in job)})"), job)


def test_jobs_of_before_keep_their_clock_their_code_and_what_they_stored(database_url, with_store):
    """What is new is worked out from what was there."""
    code, digest = "code_01ARZ3NDEKTSV4RRFFQ69G5FAV", "0" * 64
    files = {"model.safetensors": {"size": 70, "sha256": digest}, "training.json": {"size": 30, "sha256": digest}}
    with _of_revision(database_url, "0007_comparisons") as connection:
        row = {"id": code, "sha256": digest}
        connection.execute(text("INSERT INTO bundles VALUES (:id, 'default', :sha256, 1, 1, 5)"), row)
        _insert_job(connection, "job_1", spec(code=code), state="running", started_at=7)
        _insert_job(connection, "job_2", state="paused", started_at=7)
        checkpoint = {"manifest": json.dumps(manifest("job_1", 10, files=files))}
        connection.execute(text("INSERT INTO checkpoints VALUES ('job_1', 10, :manifest)"), checkpoint)

    async def scenario(store):
        running, paused = await store.jobs.get("job_1"), await store.jobs.get("job_2")
        assert (running.running_since, running.ran_us) == (running.started_at, 0)
        assert (paused.running_since, paused.ran_us) == (None, 0)
        assert await store.usage.stored(Quota(by="project")) == {"default": 100}
        assert await store.bundles.num_jobs(code) == 1
        bundle = await store.bundles.get(code)
        assert bundle.uploaded_at == bundle.created_at

    with_store(scenario)
