"""Tests of service/reconciler.py, on a real store and a cluster in memory."""

import asyncio

from service.states import State
from tests.support.world import World, run


def test_a_lost_cluster_is_connected_anew_and_its_jobs_go_on(tmp_path, monkeypatch):
    """The controller outlives its Ray: jobs whose gangs went with it restart from their last checkpoint."""
    monkeypatch.setattr("service.reconciler.LOSS_LOOK_S", 0.01)

    async def scenario(world: World) -> None:
        async with world.controller():
            job_id, gang = await world.training()
            gang.is_silent = True
            world.cluster.gangs.clear()
            world.cluster.lost = True
            again = await world.cluster.gang(job_id, attempt=2)
            again.end()
            await world.until(job_id, State.SUCCEEDED)

    run(tmp_path, scenario)


def test_a_job_without_room_says_why_it_waits_and_starts_when_there_is_room(tmp_path):
    """The queue explains itself."""

    async def scenario(world: World) -> None:
        async with world.controller():
            first = await world.submit(0, resources={"workers": 6})
            gang = await world.cluster.gang(first)
            second = await world.submit(1, resources={"workers": 6})
            while not (job := await world.store.jobs.get(second)).message:
                await asyncio.sleep(0.005)
            assert (job.state, job.reason, job.message) == (State.QUEUED, "no_room", "needs 6 CPUs, 2 free")
            gang.end()
            await world.cluster.gang(second)

    run(tmp_path, scenario)
