"""Tests of service/store/logs.py."""

import asyncio
import re
from contextlib import asynccontextmanager
from itertools import product

import pytest
from sqlalchemy import text

from service.needle import Needle
from service.states import State
from service.store import logs
from service.store.ids import new_job_id
from tests.service.store.ranks import metrics, said, spec, talk
from worker.contract import EventType

FIRST = 4
"""The number of the first event of a rank in these tests: the job was queued, starting and running before."""


async def _job(store) -> str:
    job_id, _ = await store.jobs.create(new_job_id(), spec())
    await store.attempts.begin(job_id, "first", 2)
    await store.jobs.transition(job_id, State.RUNNING, from_={State.STARTING}, reason="training")
    return job_id


async def _say(store, job_id, rank, *messages, first=1):
    batch = [said(seq, EventType.LOG, stream="stdout", level="info", message=one) for seq, one in enumerate(messages, first)]
    assert await store.events.ingest(job_id, 1, rank, batch, 1)


async def _pages(store, job_id, words, limit=100, *, is_backwards=False, **more):
    """Return every page of a search."""
    pages, cursor = [], 2**62 if is_backwards else 0
    while cursor is not None:
        where = {"before_seq": cursor} if is_backwards else {"after_seq": cursor}
        pages.append(await store.logs.search(job_id, Needle(words), limit, **where, **more))
        cursor = pages[-1].next_seq
        assert len(pages) < 1000, "a search that does not come to its end"
    return pages


def _messages(pages):
    return [event.message for page in pages for event in page.lines]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("nan", ["loss is NaN", "nanometre"]),
        ("NaN", ["loss is NaN", "nanometre"]),
        ("100%", ["100% done"]),
        ("a_b", ["a_b"]),
        ("!", ["done!"]),
        ('"quoted"', ['he said "quoted"']),
        ("c:\\new", ["C:\\New"]),
        ("two\nlines", ["Two\nLines"]),
        ("\x1b[31m", ["\x1b[31mred"]),
        ("\0", ["nul \0 here"]),
        ("ÄRGER", ["Viel Ärger", "ärger"]),
        ("ä", ["Viel Ärger", "ärger"]),
        ("損失", ["損失は非数"]),
        ("kelvin", []),  # its K is not the letter
        ("stdout", []),  # every line came that way
        ("message", []),
        ("u001b", []),  # that is how one is stored
        ("'; DROP TABLE events; --", []),
    ],
)
def test_lines_with_a_text_in_them_are_found_and_no_others(with_store, words, found):
    """The same in both databases: capitals or not, no character with a meaning of its own, nothing of how lines are stored."""
    lines = [
        "loss is NaN", "nanometre", "100% done", "1000 done", "a_b", "axb", "done!", 'he said "quoted"', "C:\\New",
        "Two\nLines", "\x1b[31mred", "nul \0 here", "Viel Ärger", "ärger", "\u212aelvin", "損失は非数",
    ]  # fmt: skip

    async def scenario(store):
        job_id = await _job(store)
        await _say(store, job_id, 0, *lines)
        for is_backwards in (False, True):
            (page,) = await _pages(store, job_id, words, is_backwards=is_backwards)
            assert [event.message for event in page.lines] == found
            assert page.num_searched == len(lines)

    with_store(scenario)


@pytest.mark.parametrize(("window", "budget_s"), [(1, 0.0), (4, 0.0), (4, 60.0), (5000, 60.0)])
def test_pages_of_a_search_have_every_line_once(with_store, monkeypatch, window, budget_s):
    """However small the pages and the steps are, and from whichever side; every line is counted once."""
    monkeypatch.setattr(logs, "WINDOW", window)
    monkeypatch.setattr(logs, "BUDGET_S", budget_s)

    async def scenario(store):
        job_id = await _job(store)
        for at in range(1, 24, 2):
            await _say(store, job_id, 0, f"line {at}, {'hit' if at % 3 == 0 else 'miss'}", first=at)
            await store.events.ingest(job_id, 1, 0, [metrics(at + 1, step=at, train_loss=1.0)], 1)
            await _say(store, job_id, 1, f"other {at}, hit", first=at)
        wanted = [f"line {at}, hit" for at in range(1, 24, 2) if at % 3 == 0]
        for is_backwards, limit in product((False, True), (1, 2, 3, 100)):
            pages = await _pages(store, job_id, "HIT", limit, is_backwards=is_backwards, rank=0)
            assert _messages(pages[::-1] if is_backwards else pages) == wanted
            assert max(len(page.lines) for page in pages) <= limit
            assert sum(page.num_searched for page in pages) == 24
            assert budget_s or max(page.num_searched for page in pages) <= window
            assert len(_messages(await _pages(store, job_id, "hit", limit, is_backwards=is_backwards))) == 16

    with_store(scenario)


def test_between_two_numbers_only_what_lies_there_is_found(with_store):
    """Neither of the two is among it."""

    async def scenario(store):
        job_id = await _job(store)
        await _say(store, job_id, 0, *(f"hit {at}" for at in range(10)))
        found = await store.logs.search(job_id, Needle("hit"), 100, after_seq=FIRST + 2, before_seq=FIRST + 6)
        assert [event.seq for event in found.lines] == [FIRST + 3, FIRST + 4, FIRST + 5]
        assert await store.logs.search("job_other", Needle("hit"), 100) == logs.Found([], 0, None)

    with_store(scenario)


def test_what_was_dropped_is_said_whatever_is_searched(with_store):
    """A search that finds nothing where lines are missing does not pass for one that found that there is nothing."""

    async def scenario(store):
        job_id = await _job(store)
        await _say(store, job_id, 0, *(f"hit {at}" for at in range(10)))
        await store.jobs.transition(job_id, State.SUCCEEDED, from_={State.RUNNING}, reason="done")
        while await store.prunings.drop_events(job_id):
            pass
        for limit in (1, 100):
            pages = await _pages(store, job_id, "never", limit)
            assert [event.type for page in pages for event in page.lines] == [EventType.GAP]

    with_store(scenario)


def test_a_step_of_a_search_reads_no_more_of_the_log_than_it_looks_through(with_store, monkeypatch):
    """A hundred thousand lines: a step of a hundred costs the same at the beginning and in the middle, in rows that are touched."""
    monkeypatch.setattr(logs, "WINDOW", 100)
    monkeypatch.setattr(logs, "BUDGET_S", 0.0)
    asked: list = []

    async def scenario(store):
        job_id = await _job(store)
        await talk(store, job_id, 100_000)
        monkeypatch.setattr(store._database, "read", _noting(store._database.read, asked, []))
        page = await store.logs.search(job_id, Needle("line 50123 "), 100, after_seq=50_050)
        assert (_messages([page]), page.num_searched) == (["line 50123 of many"], 100)
        plans = await _plans(store, asked)
        assert len(plans) == 3
        assert [plan for plan in plans if re.search("B-TREE|SCAN|Sort|Seq", plan)] == []

    with_store(scenario)


def test_a_search_lets_go_of_the_database_between_its_steps(with_store, monkeypatch):
    """SQLite has four readers here: one search does not keep one of them for as long as it takes."""
    monkeypatch.setattr(logs, "WINDOW", 10)
    monkeypatch.setattr(logs, "BUDGET_S", 60.0)
    opened: list = []

    async def scenario(store):
        job_id = await _job(store)
        await _say(store, job_id, 0, *(f"line {at}" for at in range(95)))
        monkeypatch.setattr(store._database, "read", _noting(store._database.read, [], opened))
        assert (await store.logs.search(job_id, Needle("never"), 100)).num_searched == 95
        assert len(opened) == 10

    with_store(scenario)


def _noting(read, asked, opened):
    @asynccontextmanager
    async def noted():
        async with read() as session:
            opened.append(session)
            execute = session.execute

            def noting(statement, rows=None):
                asked.append(statement)
                return execute(statement, rows)

            session.execute = noting
            yield session

    return noted


def test_searches_leave_readers_to_others(with_store, monkeypatch):
    """However many there are: each waits for its turn, and all come to their end."""
    monkeypatch.setattr(logs, "WINDOW", 10)
    monkeypatch.setattr(logs, "BUDGET_S", 60.0)
    at_once: list = []

    async def scenario(store):
        job_id = await _job(store)
        await _say(store, job_id, 0, *(f"line {at}" for at in range(95)))
        monkeypatch.setattr(store._database, "read", _counting(store._database.read, at_once))
        pages = await asyncio.gather(*(store.logs.search(job_id, Needle("never"), 100) for _ in range(8)))
        assert {page.num_searched for page in pages} == {95}
        assert max(at_once) == logs.AT_ONCE

    with_store(scenario)


def _counting(read, at_once):
    opened = 0

    @asynccontextmanager
    async def counted():
        nonlocal opened
        opened += 1
        at_once.append(opened)
        try:
            async with read() as session:
                yield session
        finally:
            opened -= 1

    return counted


async def _plans(store, asked) -> list[str]:
    async with store._database.write("plans") as write:
        session = write.connection
        is_sqlite = session.dialect_name == "sqlite"
        if not is_sqlite:
            await session.execute(text("ANALYZE events"))
        plans = []
        for statement in list(asked):
            sql = str(statement.compile(store._database._backend.reader.sync_engine, compile_kwargs={"literal_binds": True}))
            rows = await session.execute(text(("EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN ") + sql.replace(":", r"\:")))
            plans.append(" ".join(str(value) for row in rows for value in row))
        return plans
