"""Tests of service/store/sqlite.py: what only SQLite needs."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from service.states import State
from service.store import sqlite
from service.store.errors import DatabaseAwayError
from service.store.ids import new_job_id
from tests.service.store.ranks import spec


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """A file."""
    return f"sqlite:///{tmp_path / 'test.db'}"


def test_the_file_is_written_by_one_connection_that_is_careful(with_store):
    """Write-ahead log, a disk flush for each commit; readers can neither write nor checkpoint."""

    async def pragmas(connection, *names):
        return [(await connection.execute(text(f"PRAGMA {name}"))).scalar_one() for name in names]

    async def scenario(store):
        async with store._database.write("x") as write:
            assert await pragmas(write.connection, "journal_mode", "synchronous", "foreign_keys") == ["wal", 2, 1]
        async with store._database.read() as connection:
            assert await pragmas(connection, "query_only", "wal_autocheckpoint", "foreign_keys") == [1, 0, 1]
            with pytest.raises(OperationalError, match="readonly"):
                await connection.execute(text("DELETE FROM jobs"))

    with_store(scenario)


def test_a_second_process_is_refused(with_store, database_url, monkeypatch):
    """Two controllers on one database would damage it: the second says who is in the way; after the first is gone it may."""
    program = (
        "import asyncio; from service.store import store, sqlite; sqlite.LOCK_WAIT_S = 0.1; "
        f"asyncio.run(store.Store.open({database_url!r}))"
    )

    async def scenario(_store):
        outcome = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "is held by another process" in outcome.stderr

    monkeypatch.setattr(sqlite, "LOCK_WAIT_S", 0.1)
    with_store(scenario)
    with_store(lambda store: store.ping())


def test_a_disk_that_is_full_is_said_and_nothing_is_half_there(with_store):
    """The file may not grow: the job is refused as `away`, and stored whole once there is room."""

    async def scenario(store):
        async def fill():
            for _ in range(200):
                await store.jobs.create(new_job_id(), spec(labels={"k": "v" * 200}))

        async with store._database.write("x") as write:
            pages = (await write.connection.execute(text("PRAGMA page_count"))).scalar_one()
            await write.connection.execute(text(f"PRAGMA max_page_count={pages}"))
        with pytest.raises(DatabaseAwayError, match="full"):
            await fill()
        stored = len(await store.jobs.in_states([State.QUEUED]))
        async with store._database.write("x") as write:
            await write.connection.execute(text("PRAGMA max_page_count=1000000"))
        await store.jobs.create(new_job_id(), spec())
        jobs = await store.jobs.in_states([State.QUEUED])
        assert len(jobs) == stored + 1
        assert all(job.last_seq == 1 for job in jobs)

    with_store(scenario)
