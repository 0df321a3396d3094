"""Tests of service/watch.py, on a real store and a cluster in memory."""

import asyncio

import pytest

from service.states import State
from tests.support.world import World, run
from worker.contract import EventType


def test_cancel_stops_the_ranks_and_ends_only_when_they_are_gone(tmp_path):
    """`cancelled` means that no process of the job is left."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            await world.store.jobs.transition(job_id, State.CANCELLING, from_={State.RUNNING}, reason="cancel_requested")
            world.store.changes.jobs.set()
            while not gang.is_asked_to_stop:
                await asyncio.sleep(0.005)
            gang.is_silent = True
            gang.end("stopped")
            with pytest.raises(AssertionError, match="cancelling"):
                await world.until(job_id, State.CANCELLED, timeout_s=1)
            gang.is_silent = False
            await world.until(job_id, State.CANCELLED)

        assert gang.is_dissolved

    run(tmp_path, scenario)


def test_a_cancel_outlives_the_controller(tmp_path):
    """A cancel that was acknowledged happens, whoever is killed."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
        await world.store.jobs.transition(job_id, State.CANCELLING, from_={State.RUNNING}, reason="cancel_requested")
        gang.end("stopped")
        async with world.controller():
            await world.until(job_id, State.CANCELLED)

        assert gang.is_dissolved

    run(tmp_path, scenario)


def test_silence_is_no_reason_to_declare_anything(tmp_path):
    """A cluster that does not answer for a while changes no state; the job shows it, until it answers."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.is_silent = True
            before = gang.drains
            while gang.drains < before + 4:
                await asyncio.sleep(0.01)
            silent = await world.store.jobs.get(job_id)
            assert (silent.state, silent.reason) == (State.RUNNING, "not_responding")
            assert " does not answer: " in silent.message
            gang.is_silent = False
            while (heard := await world.store.jobs.get(job_id)).reason == "not_responding":
                await asyncio.sleep(0.01)
            assert (heard.state, heard.reason) == (State.RUNNING, (await world.store.jobs.transitions_of([job_id]))[job_id][-1].reason)
            gang.end()
            await world.until(job_id, State.SUCCEEDED)

    run(tmp_path, scenario)


def test_a_condition_that_another_controller_has_shown_ends_too(tmp_path):
    """The ranks answer again while no controller listens: the next one hears them, and takes back what the first has said."""

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.is_silent = True
            while (await world.store.jobs.get(job_id)).reason != "not_responding":
                await asyncio.sleep(0.01)
        gang.is_silent = False
        async with world.controller():
            while (await world.store.jobs.get(job_id)).reason != "training":
                await asyncio.sleep(0.01)

    run(tmp_path, scenario)


def test_a_job_that_runs_too_long_fails(tmp_path):
    """timeout_s counts from the first training step."""

    async def scenario(world: World) -> None:
        async with world.controller():
            gang = await world.cluster.gang(job_id := await world.submit(timeout_s=0.2))
            gang.say(EventType.STATE, {"phase": "training"})
            job = await world.until(job_id, State.FAILED)

        assert job.reason == "timeout"
        assert gang.is_dissolved

    run(tmp_path, scenario)
