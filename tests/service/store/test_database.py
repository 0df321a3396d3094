"""Tests of service/store/database.py, migration.py and store.py."""

import asyncio
import hashlib
import sqlite3
import subprocess
import sys

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from service.states import State
from service.store import database, migration
from service.store.database import DatabaseError
from service.store.ids import new_job_id
from service.store.records import IdempotencyClaim
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


def test_the_file_is_written_by_one_connection_that_is_careful(with_store):
    """Write-ahead log, a disk flush for each commit; readers can neither write nor checkpoint."""

    async def pragmas(connection, *names):
        return [(await connection.execute(text(f"PRAGMA {name}"))).scalar_one() for name in names]

    async def scenario(store):
        async with store._database.write() as write:
            assert await pragmas(write.connection, "journal_mode", "synchronous", "foreign_keys") == ["wal", 2, 1]
        async with store._database.read() as connection:
            assert await pragmas(connection, "query_only", "wal_autocheckpoint", "foreign_keys") == [1, 0, 1]
            with pytest.raises(OperationalError, match="readonly"):
                await connection.execute(text("DELETE FROM jobs"))

    with_store(scenario)


def test_a_transaction_that_fails_leaves_nothing(with_store):
    """All of a change or none of it, and nobody is woken for nothing."""

    async def scenario(store):
        async def fail():
            async with store._database.write() as write:
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


def test_a_second_process_is_refused(with_store, database_url, monkeypatch):
    """Two controllers on one database would damage it: the second says who is in the way; after the first is gone it may."""
    program = (
        "import asyncio; from service.store import store, database; database.LOCK_WAIT_S = 0.1; "
        f"asyncio.run(store.Store.open({database_url!r}))"
    )

    async def scenario(_store):
        outcome = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "is held by another process" in outcome.stderr

    monkeypatch.setattr(database, "LOCK_WAIT_S", 0.1)
    with_store(scenario)
    with_store(lambda store: store.ping())


@pytest.mark.parametrize("url", ["postgresql://h/d", "sqlite://", "sqlite:///:memory:"])
def test_a_database_of_another_kind_is_refused_in_words(url):
    """The operator learns what to set."""
    with pytest.raises(DatabaseError, match="SYNCBN_DATABASE_URL"):
        asyncio.run(Store.open(url))


def test_a_database_of_a_newer_version_is_refused_and_untouched(with_store, database_url):
    """Going back a version does not damage anything."""
    with_store(lambda store: store.ping())
    with sqlite3.connect(database_url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(DatabaseError, match="use the version that wrote it"):
        with_store(lambda store: store.ping())


def test_a_database_of_the_first_schema_keeps_its_jobs_keys_and_tokens(database_url, with_store, monkeypatch):
    """Jobs and keys go to the default project, the token may do everything as before."""
    path = database_url.removeprefix("sqlite:///")
    engine = create_engine(database_url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(migration._SCRIPTS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    sha256 = hashlib.sha256(b"sbn_old").hexdigest()
    job = dict.fromkeys(("labels", "progress", "metrics", "spec"), "{}") | dict.fromkeys(("priority", "world_size", "fence", "attempt"), 0)
    job |= {"id": "job_1", "name": "t", "state": "queued", "reason": "", "message": "", "created_at": 1, "last_seq": 0, "edition": 1}
    with sqlite3.connect(path) as connection:
        names = ", ".join(job)
        connection.execute(f"INSERT INTO jobs ({names}) VALUES ({', '.join(':' + name for name in job)})", job)
        connection.execute("INSERT INTO idempotency_keys VALUES ('k', 'f', 'job_1', 1)")
        connection.execute("INSERT INTO tokens VALUES (?, 'first', 1)", [sha256])
    connection.close()

    async def scenario(store):
        assert (await store.jobs.get("job_1")).project == "default"
        assert await store.jobs.create("job_2", spec(), IdempotencyClaim("k", "f")) == ("job_1", False)
        token = await store.tokens.find("sbn_old")
        assert (token.name, token.project, token.is_admin, token.id[:4]) == ("first", "default", True, "tok_")

    with_store(scenario)
