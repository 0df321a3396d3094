"""Tests of service/tenure.py: several controllers on one PostgreSQL and one cluster share the jobs, and none is run twice."""

import asyncio
import contextlib

import pytest

from service import tenure
from service.reconciler import Reconciler
from service.states import State
from service.store.errors import LeaseLostError
from service.store.store import Store
from service.tenure import Tenure
from tests.support.fake_cluster import FakeCluster
from tests.support.world import World


@pytest.fixture
def with_worlds(postgres, tmp_path, monkeypatch):
    """Run a scenario with as many controllers' worlds as asked for: a store each, one database, one cluster."""
    monkeypatch.setattr(tenure, "LEASE_S", 1.0)
    monkeypatch.setattr(tenure, "RENEW_S", 0.2)

    def run(scenario, number: int = 2) -> None:
        async def whole() -> None:
            url, cluster = postgres.new_database(), FakeCluster(cpus=12)
            async with contextlib.AsyncExitStack() as stack:
                stores = [await stack.enter_async_context(await Store.open(url)) for _ in range(number)]
                await asyncio.wait_for(scenario(*(World(store, cluster, tmp_path) for store in stores)), 60)

        asyncio.run(whole())

    return run


async def _freeze(reconciler: Reconciler) -> None:
    """Stop a controller in its tracks, as SIGKILL does: nothing is given back."""
    tasks = [reconciler._rounds, reconciler._renewal, *(task for _, task in reconciler._supervisors.values())]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    reconciler._tenure = None


def test_a_lease_that_was_being_taken_at_the_end_is_given_back(with_worlds):
    """The taker is cancelled when the database has answered and nobody has heard: the next controller need not wait for it to run out."""

    async def scenario(first, second):
        ending, take = Tenure(first.store), first.store.leases.take

        async def unheard(*given):
            await take(*given)
            raise asyncio.CancelledError

        first.store.leases.take = unheard
        with pytest.raises(asyncio.CancelledError):
            await ending.take(["scheduler"])
        assert set(await second.store.leases.held()) == {"scheduler"}
        await ending.end()
        assert await second.store.leases.held() == {}

    with_worlds(scenario)


def test_a_lease_that_is_taken_again_while_others_are_given_back_is_kept(with_worlds):
    """A job whose supervisor ends in that very moment and that is started anew: its new supervisor is not let go of."""

    async def scenario(first, _second):
        mine = Tenure(first.store)
        await mine.take(["a", "b"])
        mine.drop("a")
        give_back = first.store.leases.give_back

        async def slowly(*given):
            mine.drop("b")
            await give_back(*given)

        first.store.leases.give_back = slowly
        await mine.take(["b"])
        first.store.leases.give_back = give_back
        assert mine.under("b") is not None
        await mine.take([])
        assert await first.store.leases.held() == {"b": mine.holder}

    with_worlds(scenario)


def test_controllers_share_the_jobs_and_start_each_once(with_worlds):
    """Submitted to either, run by one; the cluster in memory refuses a second gang for a job."""

    async def scenario(first, second):
        async with first.controller(), second.controller():
            job_ids = [await (first, second)[number % 2].submit(number) for number in range(6)]
            for job_id in job_ids:
                (await first.train(job_id)).end()
            for job_id in job_ids:
                job = await second.until(job_id, State.SUCCEEDED)
                assert (job.attempt, job.fence) == (1, 1)

    with_worlds(scenario)


def test_the_jobs_of_a_killed_controller_are_taken_over_and_go_on(with_worlds):
    """Its lease runs out, the other adopts the living gang: no attempt is lost, none is added."""

    async def scenario(first, second):
        async with first.controller() as doomed:
            job_id, gang = await first.training()
            assert job_id in doomed._supervisors
            async with second.controller() as heir:
                await _freeze(doomed)
                async with asyncio.timeout(10):
                    while job_id not in heir._supervisors:
                        await asyncio.sleep(0.02)
                gang.end()
                assert (await second.until(job_id, State.SUCCEEDED)).attempt == 1

    with_worlds(scenario)


def test_a_controller_that_ends_well_hands_over_at_once(with_worlds, monkeypatch):
    """Nobody waits for a lease to run out."""
    monkeypatch.setattr(tenure, "LEASE_S", 600.0)

    async def scenario(first, second):
        async with second.controller() as heir:
            async with first.controller():
                job_id, gang = await first.training()
            async with asyncio.timeout(10):
                while job_id not in heir._supervisors:
                    await asyncio.sleep(0.02)
            gang.end()
            await second.until(job_id, State.SUCCEEDED)

    with_worlds(scenario)


def test_a_cancel_through_any_controller_reaches_the_one_that_runs_the_job(with_worlds):
    """Whoever takes the request."""

    async def scenario(first, second):
        async with first.controller():
            job_id, gang = await first.training()
            assert await second.store.jobs.transition(job_id, State.CANCELLING, from_={State.RUNNING}, reason="cancelled_by_user")
            async with asyncio.timeout(10):
                while not gang.is_asked_to_stop:
                    await asyncio.sleep(0.02)
            gang.end("stopped")
            await second.until(job_id, State.CANCELLED)

    with_worlds(scenario)


def test_a_controller_that_was_stopped_past_its_lease_ends_the_gang_that_it_formed_late(with_worlds):
    """It slept while it formed the gang; another gave the attempt up. The late gang is dissolved, never started; the job runs once."""

    async def scenario(first, second):
        cluster, formed = first.cluster, asyncio.Event()
        form = cluster.form

        async def slow_form(job_id, attempt, world_size, **needs):
            if attempt == 1:
                formed.set()
                await _until_another_has(second, job_id)
            return await form(job_id, attempt, world_size, **needs)

        cluster.form = slow_form
        async with first.controller() as sleeper:
            job_id = await first.submit()
            await formed.wait()
            task = sleeper._supervisors[job_id][1]
            sleeper._renewal.cancel()
            sleeper._rounds.cancel()
            async with second.controller():
                gang = await cluster.gang(job_id, attempt=2)
                await second.train(job_id, attempt=2)
                with pytest.raises(LeaseLostError):
                    await asyncio.wait_for(task, 10)
                assert cluster.alive() == [gang]
                assert cluster.gangs[job_id, 1].assignments == []
                gang.end()
                await second.until(job_id, State.SUCCEEDED)

    with_worlds(scenario)


async def _until_another_has(world: World, job_id: str) -> None:
    """Wait until the job's first attempt was given up."""
    while (job := await world.store.jobs.get(job_id)).attempt == 1 and job.state is State.STARTING:
        await asyncio.sleep(0.02)
