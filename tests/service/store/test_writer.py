"""Tests of service/store/writer.py: writes that waited share a commit, and nothing else."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import text

from service.quotas import Quota
from service.states import State
from service.store.driver import Connection
from service.store.errors import DatabaseAwayError
from service.store.ids import new_job_id
from service.store.jobs import add_job
from service.store.queue import QueueCap, QueueFullError
from service.store.records import IdempotencyClaim
from service.store.store import Store
from tests.service.store.ranks import spec


class Gate:
    """Lets commits through one by one."""

    def __init__(self) -> None:
        self.begun = 0
        self.fails = False
        self._open = asyncio.Semaphore(0)
        self._arrived = asyncio.Condition()

    def open(self, number: int = 1_000) -> None:
        """Let so many more commits through."""
        for _ in range(number):
            self._open.release()

    async def reached(self, number: int) -> None:
        """Wait until so many commits have begun."""
        async with self._arrived, asyncio.timeout(20):
            await self._arrived.wait_for(lambda: self.begun >= number)

    async def pass_by(self) -> None:
        """Be a commit."""
        async with self._arrived:
            self.begun += 1
            self._arrived.notify_all()
        await self._open.acquire()
        if self.fails:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a scene with an open store and the gate of its commits, which is closed at first."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[Store, Gate]]:
        async with await Store.open(f"sqlite:///{tmp_path}/a.db") as store:
            gate, commit = Gate(), Connection.commit

            async def gated_commit(connection: Connection) -> None:
                if not connection._is_reader:
                    await gate.pass_by()
                await commit(connection)

            monkeypatch.setattr(Connection, "commit", gated_commit)
            yield store, gate
            monkeypatch.setattr(Connection, "commit", commit)

    def run(scene) -> None:
        async def whole() -> None:
            async with opened() as (store, gate), asyncio.timeout(20):
                await scene(store, gate)

        asyncio.run(whole())

    return run


async def _turns(number: int = 20) -> None:
    """Let everybody do what he can without waiting for anything outside."""
    for _ in range(number):
        await asyncio.sleep(0)


def _submit(store: Store, **options) -> "asyncio.Task[tuple[str, bool]]":
    return asyncio.create_task(store.jobs.create(new_job_id(), spec(), **options))


async def _stored(store: Store) -> set[str]:
    return {job.id for job in await store.jobs.in_states([State.QUEUED])}


def test_those_who_wait_for_a_commit_share_the_next(gated):
    """Six jobs and two commits; before its own commit nobody is answered, and nobody sees what is not committed."""

    async def scene(store, gate):
        first = _submit(store)
        await gate.reached(1)
        others = [_submit(store) for _ in range(5)]
        await _turns()
        gate.open(1)
        await gate.reached(2)
        job_id, _ = await first
        await _turns()
        assert not any(other.done() for other in others)
        assert await _stored(store) == {job_id}
        gate.open()
        stored = {job_id, *[(await other)[0] for other in others]}
        assert await _stored(store) == stored
        assert gate.begun == 2

    gated(scene)


def test_one_that_fails_undoes_nothing_of_the_others(gated):
    """Not of those before it, nor of those after it, whether it fails or is cancelled."""

    async def scene(store, gate):
        async def fail(error):
            async with store._database.write("x") as write:
                await write.connection.execute(text("DELETE FROM jobs"))
                if error is None:
                    await asyncio.Event().wait()
                raise error

        tasks = [_submit(store)]
        await gate.reached(1)
        tasks.append(_submit(store))
        failing = asyncio.create_task(fail(RuntimeError("no")))
        tasks.append(_submit(store))
        cancelled = asyncio.create_task(fail(None))
        tasks.append(_submit(store))
        await _turns()
        gate.open()
        with pytest.raises(RuntimeError, match="no"):
            await failing
        await _turns(100)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        stored = {(await task)[0] for task in tasks}
        assert len(stored) == 4
        assert await _stored(store) == stored

    gated(scene)


def test_where_the_commit_fails_all_are_told(gated):
    """And nothing of theirs is there, and the next is stored as if nothing had been."""

    async def scene(store, gate):
        first = _submit(store)
        await gate.reached(1)
        others = [_submit(store) for _ in range(3)]
        await _turns()
        gate.open(1)
        await gate.reached(2)
        gate.fails = True
        gate.open(1)
        for outcome in await asyncio.gather(*others, return_exceptions=True):
            assert isinstance(outcome, DatabaseAwayError)
            assert "disk I/O error" in str(outcome)
        assert await _stored(store) == {(await first)[0]}
        gate.fails = False
        gate.open()
        assert (await _submit(store))[0] in await _stored(store)

    gated(scene)


def test_where_sqlite_gives_all_up_all_are_told(gated):
    """A disk that is full undoes the whole transaction: those who wrote into it before fail too, those after it do not."""

    async def scene(store, gate):
        async def give_up():
            async with store._database.write("x") as write:
                await write.connection.execute(text("ROLLBACK"))
                raise RuntimeError("given up")

        first = _submit(store)
        await gate.reached(1)
        before, culprit, after = _submit(store), asyncio.create_task(give_up()), _submit(store)
        await _turns()
        gate.open()
        outcomes = await asyncio.gather(before, culprit, after, return_exceptions=True)
        assert isinstance(outcomes[0], DatabaseAwayError)
        assert isinstance(outcomes[1], RuntimeError)
        assert await _stored(store) == {(await first)[0], outcomes[2][0]}

    gated(scene)


def test_who_does_not_notice_that_sqlite_gave_all_up_is_told(gated):
    """A write that caught the error and went on is no write; the next one has a transaction of its own."""

    async def scene(store, gate):
        async def go_on():
            async with store._database.write("x") as write:
                await write.connection.execute(text("ROLLBACK"))

        gate.open()
        with pytest.raises(sqlite3.OperationalError, match="gave the transaction up"):
            await go_on()
        job_id, _ = await _submit(store)
        assert await _stored(store) == {job_id}

    gated(scene)


def test_one_who_is_cancelled_while_he_waits_for_the_commit_is_committed_with_the_others(gated):
    """The first of a transaction commits for all, also when nobody waits for its answer any more."""

    async def scene(store, gate):
        first = _submit(store)
        await gate.reached(1)
        second, third = _submit(store), _submit(store)
        await _turns()
        gate.open(1)
        await gate.reached(2)
        second.cancel()
        await _turns()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert {(await first)[0], (await third)[0]} <= await _stored(store)
        assert len(await _stored(store)) == 3

    gated(scene)


def test_twins_of_one_commit_are_one_job(gated):
    """The second finds what the first has written, and is answered when that is on the disk."""

    async def scene(store, gate):
        first = _submit(store)
        await gate.reached(1)
        twins = [_submit(store, claim=IdempotencyClaim("key", "print")) for _ in range(2)]
        await _turns()
        gate.open(1)
        await gate.reached(2)
        await _turns()
        assert not any(twin.done() for twin in twins)
        gate.open()
        (one, is_new), (other, is_other_new) = [await twin for twin in twins]
        assert (one, is_new, is_other_new) == (other, True, False)
        assert await _stored(store) == {(await first)[0], one}

    gated(scene)


def test_one_who_writes_alone_finds_only_what_is_committed(gated):
    """What others have written is on the disk before it looks."""

    async def scene(store, gate):
        seen = []

        async def alone():
            async with store._database.write("x", is_alone=True) as write:
                (number,) = (await write.connection.execute(text("SELECT count(*) FROM jobs"))).one()
                seen.append((number, len(await _stored(store))))

        first = _submit(store)
        await gate.reached(1)
        second, last = _submit(store), asyncio.create_task(alone())
        await _turns()
        gate.open()
        await asyncio.gather(first, second, last)
        assert seen == [(2, 2)]

    gated(scene)


def test_a_tool_that_holds_the_lock_is_waited_for_beside_the_loop(tmp_path):
    """Somebody's backup: requests are answered meanwhile, and the job is stored afterwards."""

    async def scene():
        async with await Store.open(f"sqlite:///{tmp_path}/a.db") as store:
            tool = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
            tool.execute("BEGIN IMMEDIATE")
            submitted = _submit(store)
            for _ in range(20):
                await asyncio.sleep(0.005)
                await store.ping()
            assert not submitted.done()
            tool.execute("ROLLBACK")
            tool.close()
            async with asyncio.timeout(20):
                assert (await submitted)[0] in await _stored(store)

    asyncio.run(scene())


@pytest.mark.parametrize("seed", range(5))
def test_of_many_writers_the_acknowledged_are_there_and_those_that_failed_are_not(tmp_path, seed):
    """Some fail, some are given up at any moment; whoever was given up may have been stored, but whole."""
    random = Random(seed)

    async def scene():
        async with await Store.open(f"sqlite:///{tmp_path}/a.db") as store:
            acknowledged, failed = set(), set()

            async def write(job_id: str, kind: int) -> None:
                await asyncio.sleep(random.random() / 50)
                if kind == 0:
                    with pytest.raises(QueueFullError):
                        await store.jobs.create(job_id, spec(), caps=[QueueCap(Quota(by="project"), "default", 0)])
                    failed.add(job_id)
                elif kind == 1:
                    with pytest.raises(ZeroDivisionError):
                        await _half_a_job(store, job_id)
                    failed.add(job_id)
                else:
                    await store.jobs.create(job_id, spec())
                    acknowledged.add(job_id)

            async with asyncio.timeout(60):
                tasks = [asyncio.create_task(write(new_job_id(), random.randrange(5))) for _ in range(200)]
                for task in random.sample(tasks, 40):
                    asyncio.get_running_loop().call_later(random.random() / 10, task.cancel)
                for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                    assert outcome is None or isinstance(outcome, asyncio.CancelledError)
            jobs = {job.id: job for job in await store.jobs.in_states([State.QUEUED])}
            assert acknowledged <= set(jobs)
            assert not failed & set(jobs)
            assert all(job.last_seq == 1 for job in jobs.values())
            histories, _ = await store.jobs.histories(list(jobs))
            assert all(len(history) == 1 for history in histories.values())

    asyncio.run(scene())


async def _half_a_job(store: Store, job_id: str) -> None:
    async with store._database.write(job_id) as write:
        await add_job(write, job_id, spec(), "default", "")
        raise ZeroDivisionError
