"""Cancel and pause, as a user meets them: the real controller, real training; whatever the ranks do, nothing is left within bounds."""

import asyncio
import os
import signal
import time

import pytest

from service import jobs, pausing
from service.states import State
from service.store.store import Store
from tests.support.process_cluster import ProcessCluster, alive
from tests.support.recoveries import SPEC
from tests.support.world import World

pytestmark = pytest.mark.ranks
END_S = 15.0


async def _trains(world, job_id, gang):
    del gang
    while (await world.store.jobs.get(job_id)).progress.step < 2:
        await asyncio.sleep(0.01)


async def _as_it_starts(world, job_id, gang):
    """Ask while the processes are given their assignments."""


async def _with_a_stopped_rank(world, job_id, gang):
    """Ask when a rank does not answer any more, and the others wait for it."""
    await _trains(world, job_id, gang)
    os.kill(gang.ranks[0].process.pid, signal.SIGSTOP)


async def _while_it_recovers(world, job_id, gang):
    """Ask when a rank was killed, and a new one is started in its place."""
    await _trains(world, job_id, gang)
    os.kill(gang.ranks[1].process.pid, signal.SIGKILL)
    await world.until(job_id, State.RECOVERING)


async def _scenario(folder, cluster, disturb, ask=jobs.cancel, workers=2):
    async with await Store.open(f"sqlite:///{folder / 'test.db'}") as store:
        world = World(store, cluster, folder)
        async with world.controller():
            job_id = await world.submit(**SPEC | {"steps": 10**6, "resources": {"workers": workers}})
            while (job_id, 1) not in cluster.gangs:
                await asyncio.sleep(0.005)
            gang = cluster.gangs[job_id, 1]
            await disturb(world, job_id, gang)
            asked_at = time.monotonic()
            await ask(store, job_id)
            job = await world.until(job_id, State.CANCELLED if ask is jobs.cancel else State.PAUSED, timeout_s=END_S * 4)
            assert alive(gang) == []
            assert ask is jobs.pause or time.monotonic() - asked_at < END_S
            return job


@pytest.mark.parametrize("disturb", [_as_it_starts, _with_a_stopped_rank, _while_it_recovers])
def test_a_cancelled_job_leaves_nothing_in_15_seconds(tmp_path, disturb):
    """Also with a rank that stops, and at moments in which processes are being made."""
    cluster = ProcessCluster()
    try:
        asyncio.run(asyncio.wait_for(_scenario(tmp_path, cluster, disturb), 90))
    finally:
        cluster.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pause_does_not_wait_for_a_rank_that_is_stopped(tmp_path, monkeypatch, workers):
    """Also where it is the only one. A pause waits for a minute and ten usual steps; here for a second and one."""
    monkeypatch.setattr(pausing, "STEP_S", 1.0)
    monkeypatch.setattr(pausing, "USUAL_TIMES", 1.0)
    cluster = ProcessCluster()
    try:
        scenario = _scenario(tmp_path, cluster, _with_a_stopped_rank, jobs.pause, workers)
        job = asyncio.run(asyncio.wait_for(scenario, 90))
    finally:
        cluster.close()
    assert job.message.startswith("rank 0 ")
    assert "so the pause did not wait for a checkpoint; every process is gone" in job.message
