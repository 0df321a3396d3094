"""Tests of service/store/migration.py: a database of the first schema, with something in every table, comes to the present one whole."""

import asyncio
import hashlib
import json
import os
import signal

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, MetaData, create_engine, event, insert, make_url, select

from service.store import migration
from service.store.records import IdempotencyClaim
from service.store.store import Store
from tests.service.store.ranks import manifest, spec
from tests.support.forking import fork

FIRST = "0001"
MOST_STATEMENTS = 200


def _engine(database_url):
    url = make_url(database_url)
    return create_engine(url.set(drivername="sqlite" if url.get_backend_name() == "sqlite" else "postgresql+psycopg"))


def _rows():
    """Return, by table of the first schema, what is in it."""
    said = {"state": "queued", "reason": "submitted", "message": "ünïcode \U0001f600"}
    job = {
        "id": "job_1",
        "name": "t",
        "labels": '{"team": "vision"}',
        "priority": -3,
        "created_at": 1,
        "started_at": 2,
        "finished_at": None,
    }
    job |= said | {"progress": "{}", "metrics": '{"train/loss": 0.5}', "world_size": 2, "fence": 2**40, "attempt": 1}
    job |= {"spec": spec(priority=-3).model_dump_json(), "last_seq": 2, "edition": 7}
    event = {"job_id": "job_1", "seq": 1, "at": 3, "type": "state", "attempt": None, "rank": None, "rank_seq": None, "data": "{}"}
    return {
        "jobs": [job, job | {"id": "job_2", "started_at": None}],
        "job_labels": [{"job_id": "job_1", "key": "team", "value": "vision"}],
        "transitions": [{"job_id": "job_1", "number": 1, "at": 1} | said],
        "attempts": [
            {"job_id": "job_1", "number": 1, "fence": 2**40, "reason": "x", "started_at": 2, "finished_at": None, "world_size": 2}
        ],
        "events": [event, event | {"seq": 2, "type": "log", "attempt": 1, "rank": 0, "rank_seq": 1, "data": '{"message": "hello"}'}],
        "metric_points": [{"job_id": "job_1", "name": "train/loss", "step": 1, "value": 0.1 + 0.2}],
        "checkpoints": [{"job_id": "job_1", "step": 10, "manifest": json.dumps(manifest("job_1", 10))}],
        "tokens": [{"sha256": hashlib.sha256(b"sbn_old").hexdigest(), "name": "first", "created_at": 1}],
        "idempotency_keys": [{"key": "k", "fingerprint": "f", "job_id": "job_1", "created_at": 1}],
    }


def _contents(database_url):
    """Return every table with its rows, as they lie in the database, and the revision."""
    engine, found = _engine(database_url), MetaData()
    with engine.connect() as connection:
        found.reflect(connection)
        rows = {name: [dict(row) for row in connection.execute(select(table)).mappings()] for name, table in found.tables.items()}
    engine.dispose()
    [revision] = rows.pop("alembic_version")
    return {name: sorted(entries, key=repr) for name, entries in rows.items()}, revision["version_num"]


@pytest.fixture
def old_database(database_url):
    """A database as the first version left it; returns its URL."""
    engine = _engine(database_url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(migration._SCRIPTS))
        config.attributes["connection"] = connection
        command.upgrade(config, FIRST)
        tables = MetaData()
        tables.reflect(connection)
        assert set(tables.tables) == set(_rows()) | {"alembic_version"}
        for name, rows in _rows().items():
            connection.execute(insert(tables.tables[name]), rows)
    engine.dispose()
    return database_url


def _require_kept(database_url):
    """Assert that everything of the first schema is there, in every column that it had, and what became of it."""
    contents, revision = _contents(database_url)
    assert revision != FIRST
    for name, rows in _rows().items():
        kept = [{column: entry[column] for column in rows[0]} for entry in contents[name]]
        assert sorted(kept, key=repr) == sorted(rows, key=repr), name
    asked = {"min_workers": 2, "max_workers": 2, "cpus_per_worker": 1.0, "gpus_per_worker": 0, "timeout_s": 86400.0}
    assert contents["needs"] == [{"job_id": "job_1"} | asked, {"job_id": "job_2"} | asked]
    assert {(job["project"], job["log_bytes"]) for job in contents["jobs"]} == {("default", 0)}
    assert {(token["project"], token["scopes"], token["expires_at"]) for token in contents["tokens"]} == {("default", '["admin"]', None)}


def test_a_database_of_the_first_schema_comes_to_the_present_one_whole(old_database, with_store):
    """Every row of every table is kept, and the code reads them."""

    async def scenario(store):
        job = await store.jobs.get("job_1")
        assert (job.name, job.priority, job.message, job.fence, job.spec) == ("t", -3, "ünïcode \U0001f600", 2**40, spec(priority=-3))
        assert [entry.number for entry in await store.attempts.of("job_1")] == [1]
        assert [entry.data for entry in await store.events.page("job_1", 0, 10)] == [{}, {"message": "hello"}]
        assert await store.metrics.points("job_1", "train/loss", 10) == [(1, 0.1 + 0.2)]
        assert [checkpoint.step for checkpoint in await store.checkpoints.of("job_1")] == [10]
        token = await store.tokens.find("sbn_old")
        assert (token.name, token.project, token.is_admin, token.id[:4]) == ("first", "default", True, "tok_")
        assert await store.jobs.create("job_3", spec(), IdempotencyClaim("k", "f")) == ("job_1", False)

    with_store(scenario)
    _require_kept(old_database)


def _migrate_until(database_url, number):
    """Open a store, killed before its `number`-th statement."""
    left = [number]

    def come(*_):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", come)

    async def whole():
        await (await Store.open(database_url)).close()

    asyncio.run(whole())


def test_an_upgrade_killed_at_any_statement_goes_on(old_database):
    """SIGKILL before one statement of the upgrade after the other, on one database: it is the old one, whole, until it is the new one.

    Before every one on SQLite; on PostgreSQL, which undoes what a dead client began in a process of its own, before every fifth.
    """
    before = _contents(old_database)
    killed = 0
    stride = 1 if old_database.startswith("sqlite") else 5
    for number in range(1, MOST_STATEMENTS, stride):
        process = fork(_migrate_until, old_database, number)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        if _contents(old_database) != before:
            _require_kept(old_database)
    assert killed >= 30 // stride
    _require_kept(old_database)
