"""Tests of service/sweeping.py: what nobody looks after is found and ended, and nothing else."""

import asyncio

import pytest

from service import sweeping
from service.states import HOLDS_GANG, State
from service.sweeping import Standing, abandoned
from tests.support.world import World, run
from worker.contract import EventType

JOB = "job_A"


@pytest.mark.parametrize("state", State)
def test_the_present_attempt_is_abandoned_only_where_its_job_holds_no_gang(state):
    """Also while it is being ended: whoever has the job sees to that."""
    assert abandoned([(JOB, 3)], {JOB: Standing(state, 3)}) == (set() if state in HOLDS_GANG else {(JOB, 3)})


@pytest.mark.parametrize("state", State)
def test_an_earlier_attempt_is_abandoned_whatever_the_job_does(state):
    """A closed attempt never opens again."""
    assert abandoned([(JOB, 2)], {JOB: Standing(state, 3)}) == {(JOB, 2)}


@pytest.mark.parametrize("standings", [{}, {JOB: Standing(State.QUEUED, 2)}])
def test_what_the_store_has_not_heard_of_is_left_alone(standings):
    """Another installation on the same cluster, or a database put back from a backup."""
    assert abandoned([(JOB, 3)], standings) == set()


def test_a_gang_that_was_formed_too_late_is_ended(tmp_path, monkeypatch):
    """A thread that formed a gang while its controller lost the job: the processes go, those of the live attempt stay."""
    monkeypatch.setattr("service.reconciler.SWEEP_S", 0.05)

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training(retries={"restarts": 1})
        gang.is_dissolved = True
        async with world.controller():
            second = await world.train(job_id, attempt=2)
            world.cluster.gangs[job_id, 1] = late = type(second)(2)
            async with asyncio.timeout(10):
                while not late.is_dissolved:
                    await asyncio.sleep(0.01)
            second.say(EventType.METRICS, {"step": 1, "total_steps": 9, "epoch": 0.1, "samples": 5, "values": {"train/loss": 1.0}}, [0])
            second.end()
            assert (await world.until(job_id, State.SUCCEEDED)).attempt == 2

    run(tmp_path, scenario)


def test_one_look_is_not_enough(tmp_path):
    """Who is just ending a gang himself is let be; at the second look it is ended."""

    async def scenario(world: World) -> None:
        job_id = await world.submit()
        await world.store.attempts.begin(job_id, "submitted", 2)
        gang = await world.cluster.form(job_id, 1, 2, cpus=1, gpus=0, is_given_up=lambda: False)
        assert await sweeping.sweep(world.store, world.cluster, set()) == set()
        await world.store.jobs.transition(job_id, State.FAILED, from_={State.STARTING}, reason="x")
        suspects = await sweeping.sweep(world.store, world.cluster, set())
        assert (suspects, gang.is_dissolved) == ({(job_id, 1)}, False)
        # Deleted meanwhile, by a user who is quick: what was closed stays closed.
        await world.store.jobs.delete(job_id)
        await sweeping.sweep(world.store, world.cluster, suspects)
        assert gang.is_dissolved
        assert await sweeping.sweep(world.store, world.cluster, suspects) == set()

    run(tmp_path, scenario)
